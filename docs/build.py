"""Builds the site offline: pages and tutorials as stored, and an API page for every module.

Usage: python docs/build.py [OUT]      OUT is _docs unless given; the pages are in OUT/html
"""

import ast
import json
import shutil
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOB = "https://github.com/arcpoint/arcpoint_ce/blob/main/"
PAGES = ("why", "recipes", "method", "results", "architecture")
CONF = """import re

project = "arcpoint_ce"
copyright = "2026 arcpoint_ce contributors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
nb_execution_mode = "off"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
html_theme = "alabaster"
html_theme_options = {"description": "Predictive request routing", "page_width": "1100px"}
html_static_path = []
mathjax_path = "mathjax.js"
myst_enable_extensions = []
html_copy_source = False
suppress_warnings = ["docutils", "myst.header", "misc.highlighting_failure", "ref.python"]


def escaped(line):
    "A line of a docstring: what stands in backticks is code, all else is plain."
    parts = line.split("`")
    if len(parts) % 2 == 0:
        return re.sub(r"([\\\\*|_`])", r"\\\\\\1", line)
    for k, part in enumerate(parts):
        plain = re.sub(r"([\\\\*|_])", r"\\\\\\1", part)
        code = k % 2 and part.strip() and not parts[k + 1][:1].isalnum()
        parts[k] = f"``{part.strip()}``" if code else plain
    return "".join(parts)


def plain_docstrings(app, what, name, obj, options, lines):
    lines[:] = [escaped(line.strip()) for line in lines]


def setup(app):
    app.connect("autodoc-process-docstring", plain_docstrings)
"""


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def public_names(path: Path) -> list[str]:
    "The `__all__` of a module; [] where it has none."
    for node in tree_of(path).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


def modules() -> dict[str, list[str]]:
    "Public names by module, for every module that has some."
    found = sorted((ROOT / "arcpoint_ce").rglob("*.py"))
    paths = [p for p in found if p.name[0] != "_"]
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): public_names(p) for p in paths}
    return {module: names for module, names in names.items() if names}


def local_links(text: str) -> str:
    "Links to notebooks and files of the repository as links within the site."
    for folder in ("pages", "tutorials"):
        text = text.replace(f"{BLOB}nbs/{folder}/", f"{folder}/")
    text = text.replace(f"{BLOB}nbs/tutorials)", "tutorials/01_quickstart.ipynb)")
    text = text.replace(f"{BLOB}CONTRIBUTING.md", "CONTRIBUTING.md")
    return text.replace(
        "https://raw.githubusercontent.com/arcpoint/arcpoint_ce/main/data/", "data/"
    )


def without_hidden(path: Path) -> dict:
    "A notebook as people read it: hidden cells left out, and the code of silent ones."
    nb = json.loads(path.read_text(encoding="utf-8"))
    kept = []
    for cell in nb["cells"]:
        source = "".join(cell["source"])
        if source.startswith("#| hide"):
            continue
        if source.startswith("#| echo: false"):
            cell["metadata"] = {"tags": ["remove-input"]}
        if cell["cell_type"] == "markdown":
            local = local_links(source).replace("](pages/", "](").replace("](data/", "](../data/")
            cell["source"] = local.splitlines(keepends=True)
        kept.append(cell)
    nb["cells"] = kept
    nb["metadata"]["language_info"] = {"name": "python"}
    return nb


def kinds(module: str) -> dict[str, str]:
    "The Sphinx directive of every name that a module defines."
    path = ROOT / (module.replace(".", "/") + ".py")
    out = {}
    for node in tree_of(path).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            out[node.name] = "autofunction"
        elif isinstance(node, ast.ClassDef):
            out[node.name] = "autoclass"
    return out


def api_page(module: str, names: list[str]) -> str:
    "A page that documents every public name of a module."
    known = kinds(module)
    directives = [f".. automodule:: {module}\n   :no-members:\n"]
    for name in names:
        kind = known.get(name, "autodata")
        extra = {"autoclass": "   :members:\n", "autodata": "   :no-value:\n"}.get(kind, "")
        directives.append(f".. {kind}:: {module}.{name}\n{extra}")
    return f"# {module}\n\n```{{eval-rst}}\n" + "\n".join(directives) + "```\n"


def write_sources(out: Path):
    "Everything that Sphinx reads."
    shutil.rmtree(out, ignore_errors=True)
    for folder in ("pages", "tutorials", "api", "data"):
        (out / folder).mkdir(parents=True)
    (out / "conf.py").write_text(CONF)
    for folder in ("pages", "tutorials"):
        for path in sorted((ROOT / "nbs" / folder).glob("*.ipynb")):
            (out / folder / path.name).write_text(json.dumps(without_hidden(path)))
    for path in (ROOT / "data").glob("*.png"):
        shutil.copy(path, out / "data")
    readme = local_links((ROOT / "README.md").read_text(encoding="utf-8"))
    tree = [f"pages/{name}" for name in PAGES]
    tree += [f"tutorials/{p.stem}" for p in sorted((ROOT / "nbs" / "tutorials").glob("*.ipynb"))]
    toc = "\n".join([*tree, "CONTRIBUTING", "CHANGELOG", "api/index"])
    index = f"{readme}\n```{{toctree}}\n:hidden:\n:maxdepth: 1\n\n{toc}\n```\n"
    (out / "index.md").write_text(index, encoding="utf-8")
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, out)
    found = modules()
    for module, names in found.items():
        (out / "api" / f"{module}.md").write_text(api_page(module, names), encoding="utf-8")
    listed = "\n".join(found)
    toc = f"```{{toctree}}\n{listed}\n```\n"
    text = f"# API\n\nA page for every module, every public name on it.\n\n{toc}"
    (out / "api" / "index.md").write_text(text)


def main(out: str = "_docs") -> int:
    try:
        from sphinx.cmd.build import build_main
    except ImportError:
        print("Sphinx is missing: pip install -e '.[docs]'", file=sys.stderr)
        return 1
    where = Path(out).absolute()
    write_sources(where / "src")
    return build_main(["-q", "-b", "html", str(where / "src"), str(where / "html")])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
