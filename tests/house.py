"""Measures the house: slices, depth, long lines, dense lines, complexity, examples, exported names.

Usage: python tests/house.py [ROOM or NOTEBOOK …]     totals, and with a room or a notebook every
finding
"""

import ast
import io
import json
import re
import sys
import tokenize
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

from radon.complexity import cc_visit

ROOT = Path(__file__).parents[1]
WIDTH = 100
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NEAR = 2  # an example stands at most this many cells below what it shows
FREE = ("Protocol", "Exception", "Error", "Warning")  # bases that need no second user
EXPORT = re.compile(r"^#\|\s*export\b", re.M)
HIDE = re.compile(r"^#\|\s*(hide|default_exp|echo)\b", re.M)


class Cell(NamedTuple):
    "One cell of a notebook."

    kind: str  # code or markdown
    source: str

    @property
    def exported(self) -> bool:
        return self.kind == "code" and bool(EXPORT.search(self.source))

    @property
    def names(self) -> list[str]:
        "Public functions and classes that this cell defines at its top level."
        tree = ast.parse(self.source)
        return [n.name for n in tree.body if isinstance(n, DEFINITIONS) and n.name[0] != "_"]


class Notebook(NamedTuple):
    path: Path
    cells: list[Cell]

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.stem}"

    @property
    def code(self) -> list[str]:
        return [c.source for c in self.cells if c.kind == "code" and c.source.strip()]


class Module(NamedTuple):
    name: str  # room.stem
    source: str
    tree: ast.Module


@cache
def notebooks() -> list[Notebook]:
    found = sorted(
        p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
    )
    return [read(p) for p in found]


def read(path: Path) -> Notebook:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return Notebook(path, [Cell(c["cell_type"], "".join(c["source"])) for c in cells])


@cache
def modules() -> list[Module]:
    found = sorted(p for p in (ROOT / "arcpoint_ce").rglob("*.py") if p.name[0] != "_")
    return [
        Module(
            ".".join(p.relative_to(ROOT / "arcpoint_ce").with_suffix("").parts),
            text,
            ast.parse(text),
        )
        for p in found
        for text in [p.read_text(encoding="utf-8")]
    ]


def classes() -> dict[str, tuple[str, list[str]]]:
    "Every class at the top level of a module: its module and the names of its bases."
    return {
        node.name: (m.name, [ast.unparse(b).split("[")[0].split(".")[-1] for b in node.bases])
        for m in modules()
        for node in m.tree.body
        if isinstance(node, ast.ClassDef)
    }


def slices(table: dict[str, tuple[str, list[str]]]) -> list[str]:
    "Classes that are a base of fewer than two concrete classes. Protocols and exceptions are free."
    heirs: dict[str, set[str]] = {}

    def ancestors(name: str) -> set[str]:
        own = [b for b in table[name][1] if b in table]
        return set(own).union(*(ancestors(b) for b in own)) if own else set()

    bases = {b for _, names in table.values() for b in names if b in table}
    for name in table:
        if name not in bases:
            for base in ancestors(name):
                heirs.setdefault(base, set()).add(name)
    free = {n for n in table if any(b.endswith(FREE) for b in [*table[n][1], *ancestors(n)])}
    return sorted(f"{table[b][0]}: {b}" for b in bases - free if len(heirs.get(b, ())) < 2)


def depth(table: dict[str, tuple[str, list[str]]]) -> tuple[int, str]:
    "The deepest chain of the project's own classes."

    def below(name: str) -> int:
        return 1 + max((below(b) for b in table[name][1] if b in table), default=0)

    return max(((below(name), name) for name in table), default=(0, ""))


def long_lines(nb: Notebook) -> list[str]:
    return [line for text in nb.code for line in text.splitlines() if len(line) > WIDTH]


def joined(nb: Notebook) -> list[str]:
    "Lines that join statements with a semicolon."
    out = []
    for text in nb.code:
        try:
            tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        except (tokenize.TokenError, SyntaxError):
            continue
        out += [t.line.rstrip() for t in tokens if t.type == tokenize.OP and t.string == ";"]
    return out


def density(found: list[Module]) -> tuple[int, int]:
    """Syntax nodes and non-blank lines of all function bodies, without docstrings.

    Python hangs a load or store marker below every name; those markers are not counted.
    """
    nodes = lines = 0
    for m in found:
        text = m.source.splitlines()
        inner = {
            n
            for f in ast.walk(m.tree)
            if isinstance(f, FUNCTIONS)
            for n in ast.walk(f)
            if n is not f
        }
        for f in ast.walk(m.tree):
            if not isinstance(f, FUNCTIONS) or f in inner:
                continue
            body = f.body[1:] if ast.get_docstring(f) is not None else f.body
            if not body:
                continue
            inside = (node for statement in body for node in ast.walk(statement))
            nodes += sum(not isinstance(node, ast.expr_context) for node in inside)
            lines += sum(
                bool(row.strip()) for row in text[body[0].lineno - 1 : body[-1].end_lineno]
            )
    return nodes, lines


def complicated(m: Module, most: int = 10) -> list[str]:
    "Functions and methods with a cyclomatic complexity above `most`."
    blocks = cc_visit(m.source)
    own = [b for b in blocks if b.letter in "FM"]
    return sorted({f"{m.name}: {b.fullname} {b.complexity}" for b in own if b.complexity > most})


def without_example(nb: Notebook) -> tuple[list[str], int]:
    "Exported functions and classes that no cell right below shows, and the number of all."
    missing, total = [], 0
    for i, cell in enumerate(nb.cells):
        if not cell.exported:
            continue
        below = [
            c.source for c in nb.cells[i + 1 : i + 1 + NEAR] if c.kind == "code" and not c.exported
        ]
        total += len(cell.names)
        missing += [n for n in cell.names if not any(re.search(rf"\b{n}\b", s) for s in below)]
    return missing, total


def without_reason(nb: Notebook) -> tuple[list[str], int]:
    """Exported cells that no paragraph precedes, and the number of all; cells of imports are left
    out.
    """
    missing, total = [], 0
    for i, cell in enumerate(nb.cells):
        if not cell.exported or not cell.names:
            continue
        total += 1
        above = [c for c in nb.cells[:i] if not (c.kind == "code" and HIDE.search(c.source))]
        if (
            not above
            or above[-1].kind != "markdown"
            or above[-1].source.lstrip().startswith("#")
            and "\n" not in above[-1].source.strip()
        ):
            missing.append(", ".join(cell.names))
    return missing, total


def attached(m: Module) -> list[str]:
    "Functions that take `self` outside a class, patches, attributes set on a class from outside."
    out = []
    own = {node.name for node in m.tree.body if isinstance(node, ast.ClassDef)}
    for node in m.tree.body:
        if isinstance(node, FUNCTIONS):
            if any(a.arg == "self" for a in node.args.args):
                out.append(f"{m.name}: {node.name} takes self")
            if any(ast.unparse(d).startswith("patch") for d in node.decorator_list):
                out.append(f"{m.name}: {node.name} is patched in")
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            if ast.unparse(node.targets[0].value) in own:
                out.append(f"{m.name}: {ast.unparse(node.targets[0])} is set from outside")
    return out


def exported(m: Module) -> list[str]:
    "The module's `__all__`."
    for node in m.tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


@cache
def users() -> dict[str, Counter]:
    "How often each identifier is used, by module, template, or other notebook."
    out = {m.name: words(m.source) for m in modules()}
    out |= {
        "arcpoint_ce": words((ROOT / "arcpoint_ce" / "__init__.py").read_text(encoding="utf-8"))
    }
    for path in [
        *ROOT.glob("reports/*.ipynb"),
        *ROOT.glob("nbs/*.ipynb"),
        *ROOT.glob("nbs/pages/*.ipynb"),
        *ROOT.glob("nbs/tutorials/*.ipynb"),
    ]:
        out[path.stem + ".ipynb"] = words("\n".join(c.source for c in read(path).cells))
    for path in [ROOT / "README.md", ROOT / "data" / "README.md"]:
        out[str(path)] = words(path.read_text(encoding="utf-8"))
    return out


def words(text: str) -> Counter:
    return Counter(re.findall(r"\b[A-Za-z_]\w*", text))


def unused(m: Module) -> list[str]:
    """Exported names that nothing outside the module uses.

    Its notebook, tests and the index are no users.
    """
    return [
        n for n in exported(m) if not any(n in c for name, c in users().items() if name != m.name)
    ]


def share(parts: list[tuple[list[str], int]]) -> float:
    missing, total = sum(len(m) for m, _ in parts), sum(n for _, n in parts)
    return 1 - missing / total if total else 1.0


def summary(nbs: list[Notebook], mods: list[Module]) -> dict[str, object]:
    "Every figure of the house, or of a part of it."
    table = classes()
    own = {m.name for m in mods}
    nodes, lines = density(mods)
    return {
        "classes that are only a slice": sum(s.split(":")[0] in own for s in slices(table)),
        "inheritance depth": depth({k: v for k, v in table.items() if v[0] in own})[0]
        if own
        else 0,
        f"lines above {WIDTH}": sum(len(long_lines(nb)) for nb in nbs),
        "lines joined by ;": sum(len(joined(nb)) for nb in nbs),
        "syntax nodes a line": round(nodes / max(lines, 1), 2),
        "functions above complexity 10": sum(len(complicated(m)) for m in mods),
        "share with an example": round(share([without_example(nb) for nb in nbs]), 3),
        "share with a reason above": round(share([without_reason(nb) for nb in nbs]), 3),
        "exported names": sum(len(exported(m)) for m in mods),
        "exported names without a user outside": sum(len(unused(m)) for m in mods),
    }


def findings(nb: Notebook, mods: list[Module]) -> dict[str, list[str]]:
    "Everything to mend in one notebook and its module."
    own = {m.name for m in mods}
    return {
        "slices": [s for s in slices(classes()) if s.split(":")[0] in own],
        "long lines": long_lines(nb),
        "joined lines": joined(nb),
        "complicated": [c for m in mods for c in complicated(m)],
        "no example": without_example(nb)[0],
        "no reason above": without_reason(nb)[0],
        "exported, used by nobody outside": [n for m in mods for n in unused(m)],
    }


def main(wanted: list[str]) -> None:
    print(json.dumps(summary(notebooks(), modules()), indent=1))
    for word in wanted:
        for nb in notebooks():
            if word not in (nb.path.parent.name, nb.path.stem):
                continue
            module = f"{nb.path.parent.name}.{nb.path.stem.split('_', 1)[-1]}"
            mods = [m for m in modules() if m.name == module]
            print(f"\n== {nb.name}  {json.dumps(summary([nb], mods))}")
            for what, lines in findings(nb, mods).items():
                if lines:
                    print(f"  {what}: " + "; ".join(x.strip()[:90] for x in lines))


if __name__ == "__main__":
    main(sys.argv[1:])
