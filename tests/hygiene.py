"""Notebook hygiene: export, clean and README leave no diff; ruff and mypy find no fault.

Usage: python tests/hygiene.py [--readme]      --readme only writes README.md from nbs/index.ipynb
"""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]


def readme() -> str:
    """README.md as nbs/index.ipynb tells it: without hidden cells, and without the code of `#|
    echo: false` cells.
    """
    nb = nbformat.read(ROOT / "nbs" / "index.ipynb", 4)
    nb.cells = [c for c in nb.cells if not c.source.lstrip().startswith("#| hide")]
    nb.metadata["language_info"] = {"name": "python"}
    silent = {c.id for c in nb.cells if c.source.lstrip().startswith("#| echo: false")}
    for c in nb.cells:
        for o in c.get("outputs", []):
            if "text/markdown" in o.get("data", {}):
                o["data"] = {"text/markdown": o["data"]["text/markdown"]}
            else:
                o.get("data", {}).pop("text/html", None)
        if c.id in silent:
            c.source = ""
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(
        r"^```[^\n]*\n(.*?)^```\n*", lambda m: m[0] if m[1].strip() else "", text, flags=re.S | re.M
    )  # what is left of silent cells
    text = re.sub(r"\n{3,}", "\n\n", text)
    return "<!-- made from nbs/index.ipynb by `make readme` -->\n" + text.strip() + "\n"


def state() -> dict[str, str]:
    "Hash of every file that export, clean or readme may write."
    files = [
        *ROOT.glob("nbs/**/*.ipynb"),
        *ROOT.glob("reports/*.ipynb"),
        *ROOT.glob("arcpoint_ce/**/*.py"),
        ROOT / "README.md",
    ]
    return {
        str(f.relative_to(ROOT)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in files
        if ".ipynb_checkpoints" not in f.parts
    }


def main() -> int:
    if "--readme" in sys.argv[1:]:
        (ROOT / "README.md").write_text(readme(), encoding="utf-8")
        return 0
    before = state()
    for command in (["nbdev_export"], ["nbdev_clean"], ["nbdev_clean", "--fname", "reports"]):
        subprocess.run(command, cwd=ROOT, check=True)
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
    after = state()
    moved = sorted(f for f in before.keys() | after.keys() if before.get(f) != after.get(f))
    if moved:
        print(
            "export, clean or README changed these files; look at them and commit them:",
            *moved,
            sep="\n  ",
        )
    else:
        print(f"hygiene: {len(after)} files, no diff after nbdev_export, nbdev_clean and README")
    return bool(moved) or lint()


def lint() -> bool:
    "Whether ruff or mypy finds fault; they say with what."
    where = ["nbs", "reports", "tests", "setup.py"]
    checks = (
        ["ruff", "format", "--check", "-q", *where],
        ["ruff", "check", "-q", *where],
        ["mypy", "--no-error-summary"],
    )
    failed = [c for c in checks if subprocess.run(c, cwd=ROOT).returncode]
    for command in failed:
        print("found fault:", " ".join(command))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
