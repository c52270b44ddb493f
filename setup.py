"Package metadata comes from settings.ini, so that it stands in one place."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(HERE / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
extras = {
    k.removesuffix("_requirements"): v.split()
    for k, v in cfg.items()
    if k.endswith("_requirements")
}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    packages=[
        *find_packages(include=["arcpoint_ce", "arcpoint_ce.*"]),
        "arcpoint_ce.templates",
        "arcpoint_ce.sample",
    ],
    package_dir={"arcpoint_ce.templates": "reports", "arcpoint_ce.sample": "data"},
    package_data={
        "arcpoint_ce": ["py.typed"],
        "arcpoint_ce.templates": ["*.ipynb"],
        "arcpoint_ce.sample": ["*.parquet", "*.csv.gz", "*.toml", "*.json", "*.md"],
    },
    include_package_data=False,
    zip_safe=False,
)
