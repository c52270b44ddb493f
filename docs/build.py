"""Builds the site offline: pages and tutorials as stored, and an API page for every module.

Usage: python docs/build.py [OUT]      OUT is _docs unless given; the pages are in OUT/html
"""

import ast
import inspect
import json
import shutil
import sys
import textwrap
import tokenize
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
    "Docstrings as they were written, and the comments of the parameters as a list."
    from build import parameters_of  # Sphinx runs inside docs/build.py

    lines[:] = [escaped(line.strip()) for line in lines]
    if told := parameters_of(obj):
        gives = told.pop("return", None)
        lines += ["", *(f":param {name}: {escaped(text)}" for name, text in told.items())]
        lines += [f":returns: {escaped(gives)}"] if gives else []
        lines.append("")


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


def _comments(lines: list[str]) -> tuple[dict[int, str], dict[int, str]]:
    "By line number, from 1: comments behind code, and comments that have a line of their own."
    behind, alone = {}, {}
    for token in tokenize.generate_tokens(iter([f"{line}\n" for line in lines]).__next__):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            own = not lines[row - 1][:column].strip()
            (alone if own else behind)[row] = token.string.lstrip("# ").strip()
    return behind, alone


def _told_at(line: int, last: int, behind: dict[int, str], alone: dict[int, str]) -> str:
    "The comment of what stands on these lines: behind it, or on the lines above."
    above = []
    while line - len(above) - 1 in alone:
        above.insert(0, alone[line - len(above) - 1])
    return " ".join([*above, *(behind[k] for k in range(line, last + 1) if k in behind)])


def _arguments(node: ast.FunctionDef) -> list[tuple[str, int]]:
    "Names of parameters with their first line."
    a = node.args
    known = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
    return [(x.arg, x.lineno) for x in known if x and x.arg not in ("self", "cls")]


def parameters_of(obj) -> dict[str, str]:
    """The comment of every parameter of a function, or field of a class; `return` is the result.

    What has no source, and what has no comment, is left out.
    """
    if not (inspect.isfunction(obj) or inspect.ismethod(obj) or inspect.isclass(obj)):
        return {}
    try:
        lines = textwrap.dedent(inspect.getsource(obj)).splitlines()
        node = ast.parse("\n".join(lines)).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    behind, alone = _comments(lines)
    if isinstance(node, ast.ClassDef):
        made = [x for x in node.body if getattr(x, "name", "") == "__init__"]
        fields = [x for x in node.body if isinstance(x, ast.AnnAssign)]
        if not made:
            told = {x.target.id: (x.lineno, x.end_lineno) for x in fields}
            found = {k: _told_at(*at, behind, alone) for k, at in told.items() if k[0] != "_"}
            return {k: text for k, text in found.items() if text}
        node = made[0]
    where = _arguments(node)
    ends = [at - 1 for _, at in where[1:]] + [0]
    head = node.body[0].lineno - 1  # the last line of the signature
    found = {}
    for (name, at), end in zip(where, ends):
        while end in alone:
            end -= 1
        found[name] = _told_at(at, min(max(end, at), head - 1), behind, alone)
    found["return"] = _told_at(head, head, behind, alone)
    return {k: text for k, text in found.items() if text}


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
