"""What the words on public functions and classes leave untold: docstrings, errors, units.

Usage: python tests/documented.py [MODULE …]      every finding, or those of `room.stem`
"""

import ast
import builtins
import io
import re
import sys
import tokenize
from collections import Counter
from functools import cache
from typing import NamedTuple

from house import DEFINITIONS, FUNCTIONS, Module, exported, modules, words

MAKERS = ("__init__", "__post_init__", "__new__", "__call__")  # told in the docstring of the class
UNIT_NAME = re.compile(
    r"(^|_)(s|ms|us|min|h|usd|rps|rpm|tpm|tok|mb|gb|bytes|px|seconds|now|shares?|ratio"
    r"|probability|percent|tokens|tokens_in|tokens_out|(usd|tok)_per_\w+)$"
)
UNIT_WORD = re.compile(
    r"\b(s|ms|us|seconds?|minutes?|hours?|days?|USD|tokens?|requests?|shares?|ratio|probability"
    r"|chances?|percent|0\.\.1|half widths|standard deviations?|units?)\b|%",
    re.I,
)

NAMED_ERROR = re.compile(r"(?<![\w.])[A-Z]\w+Error\b")  # with a dot before it: of another package


class Door(NamedTuple):
    "A function, method or class that others call, with all the words that speak for it."

    name: str  # module: function, Class or Class.method
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    docs: list[str]  # its docstring, and those of the same method in bases and protocols
    around: str  # the docstring of its class
    told: set[str]  # what a comment tells: names of parameters, `return` for the result
    known: dict[str, ast.AST]  # what it may call by a name of its own: `f`, `self.method`

    @property
    def text(self) -> str:
        return "\n".join([*self.docs, self.around])


@cache
def remarks(source: str) -> tuple[set[int], set[int]]:
    "Numbers of the lines with a comment behind code, and of those that hold only a comment."
    behind, alone = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            (behind if token.line[:column].strip() else alone).add(row)
    return behind, alone


def taken(node: ast.AST) -> list[tuple[str, str, ast.AST]]:
    "What a caller gives (name, type, place): parameters, or the fields that make a class."
    if isinstance(node, ast.ClassDef):
        fields = [x for x in node.body if isinstance(x, ast.AnnAssign)]
        return [
            (x.target.id, ast.unparse(x.annotation), x) for x in fields if x.target.id[0] != "_"
        ]
    a = node.args
    every = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
    return [(x.arg, ast.unparse(x.annotation), x) for x in every if x and x.annotation]


def commented(source: str, node: ast.AST) -> set[str]:
    """What a comment behind it, or on the line right above, tells.

    A comment behind several parameters is about the result.
    """
    behind, alone = remarks(source)
    places = [(name, x.lineno, x.end_lineno) for name, _, x in taken(node)]
    if result := getattr(node, "returns", None):
        places.append(("return", result.lineno, result.end_lineno))
    shared = Counter(first for _, first, _ in places)
    return {
        name
        for name, first, last in places
        if first - 1 in alone or last in behind and (shared[first] == 1 or name == "return")
    }


def methods(node: ast.ClassDef) -> dict[str, ast.AST]:
    "What others call of a class; setters are told with the property."
    out = {}
    for f in node.body:
        if isinstance(f, FUNCTIONS) and (f.name[0] != "_" or f.name in MAKERS):
            if not any(ast.unparse(d).endswith(".setter") for d in f.decorator_list):
                out[f.name] = f  # overloads are replaced by the method itself
    return out


@cache
def families(every: tuple[Module, ...]) -> tuple[dict, list]:
    "Classes by name, with their modules; and the protocols among them."
    found = [(m, n) for m in every for n in m.tree.body if isinstance(n, ast.ClassDef)]
    protocols = [
        (m, n) for m, n in found if any(ast.unparse(b).startswith("Protocol") for b in n.bases)
    ]
    return {n.name: (m, n) for m, n in found}, protocols


def relatives(m: Module, node: ast.ClassDef, every: tuple[Module, ...]) -> list[tuple]:
    "Bases of a class, and the protocols that it fulfils because it has all of their methods."
    table, protocols = families(every)
    here, _ = families((m,))  # comes before a class of the same name elsewhere
    bases = [ast.unparse(b).split("[")[0].split(".")[-1] for b in node.bases]
    out = [here.get(b) or table[b] for b in bases if b in table]
    out += [kin for other, base in out for kin in relatives(other, base, every)]
    own = set(methods(node)).union(*(methods(n) for _, n in out))
    return out + [(k, n) for k, n in protocols if methods(n) and own >= set(methods(n))]


@cache
def doors(m: Module, every: tuple[Module, ...]) -> list[Door]:
    "Everything that others call in a module: its exported functions, classes, their methods."
    out = []
    local = {n.name: n for n in m.tree.body if isinstance(n, DEFINITIONS)}
    for name in exported(m):
        node = local.get(name)
        if node is None:
            continue
        doc = ast.get_docstring(node) or ""
        told = commented(m.source, node)
        out.append(Door(f"{m.name}: {name}", node, [doc], doc, told, local))
        if not isinstance(node, ast.ClassDef):
            continue
        kin = relatives(m, node, every)
        inside = {f"self.{f.name}": f for f in node.body if isinstance(f, FUNCTIONS)}
        for called, f in methods(node).items():
            same = [(m, f), *((k, methods(n)[called]) for k, n in kin if called in methods(n))]
            docs = [ast.get_docstring(x) or "" for _, x in same]
            told = set().union(*(commented(k.source, x) for k, x in same))
            out.append(Door(f"{m.name}: {name}.{called}", f, docs, doc, told, local | inside))
    return out


def undocumented(m: Module, every: tuple[Module, ...]) -> list[str]:
    "Doors that no docstring speaks for."
    return [
        d.name for d in doors(m, every) if not (any(d.docs) or d.around and d.node.name in MAKERS)
    ]


def caught(name: str, handlers: list[ast.ExceptHandler]) -> bool:
    "Is an error dealt with here? A handler that raises it again does not."
    kind = getattr(builtins, name, Exception)
    family = {name, *(c.__name__ for c in kind.__mro__)}
    for h in handlers:
        again = any(isinstance(x, ast.Raise) and x.exc is None for x in ast.walk(h))
        if not again and (h.type is None or family & set(words(ast.unparse(h.type)))):
            return True
    return False


def raised(node: ast.AST, known: dict[str, ast.AST], seen: frozenset = frozenset()) -> set[str]:
    """Names of the errors that leave a body: its own, and those of what it calls.

    Followed are functions of the same module and methods of the same class. Nested functions are
    left out, and so is what a `try` around it catches.
    """
    out = set()
    if isinstance(node, ast.Raise) and node.exc:
        called = ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
        makes = known.get(called)  # an error, or a helper that returns one
        out.add(ast.unparse(makes.returns) if getattr(makes, "returns", None) else called)
    elif isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        helper = known.get(called)
        if isinstance(helper, FUNCTIONS) and called not in seen:
            out |= raised(helper, known, seen | {called})
    for part, x in parts_of(node):
        inner = raised(x, known, seen)
        if isinstance(node, ast.Try) and part == "body":
            inner = {name for name in inner if not caught(name, node.handlers)}
        out |= inner
    return {name.rpartition(".")[2] for name in out}


def parts_of(node: ast.AST) -> list[tuple[str, ast.AST]]:
    "What stands right below a node, with the name of its place; nested functions are left out."
    return [
        (place, x)
        for place, value in ast.iter_fields(node)
        for x in (value if isinstance(value, list) else [value])
        if isinstance(x, ast.AST) and not isinstance(x, (*DEFINITIONS, ast.Lambda))
    ]


def public_error(name: str, known: dict[str, ast.AST]) -> str:
    "How a caller knows an error: one that is not exported by the name of its base."
    kind = known.get(name)
    while name[0] == "_" and isinstance(kind, ast.ClassDef) and kind.bases:
        name = ast.unparse(kind.bases[0]).rpartition(".")[2]
        kind = known.get(name)
    return name


def untold_errors(m: Module, every: tuple[Module, ...]) -> list[str]:
    "Errors that no docstring of the door that they come out of names."
    out = []
    for d in doors(m, every):
        if isinstance(d.node, ast.ClassDef):
            continue
        names = {public_error(name, d.known) for name in raised(d.node, d.known)}
        names = {name for name in names if name[0].isupper()}  # the others are variables
        out += [f"{d.name} {name}" for name in sorted(names - set(words(d.text)))]
    return out


def unknown_errors(m: Module, every: tuple[Module, ...]) -> list[str]:
    "Errors that a docstring names and that nobody could catch by that name."
    ours = {name for other in every for name in exported(other)}
    named = [(d, x) for d in doors(m, every) for x in NAMED_ERROR.findall("\n".join(d.docs))]
    return [f"{d.name} {x}" for d, x in named if x not in ours and not hasattr(builtins, x)]


def without_unit(m: Module, every: tuple[Module, ...]) -> list[str]:
    "Floats that come or go without a word on what they measure."
    out = []
    for d in doors(m, every):
        for name, kind, _ in taken(d.node):
            helped = kind.startswith("Annotated[")  # the help text of a command says it
            known = name in d.told or helped or UNIT_NAME.search(name) or f"`{name}`" in d.text
            if "float" in words(kind) and not known:
                out.append(f"{d.name} {name}")
        result = getattr(d.node, "returns", None)
        known = "return" in d.told or UNIT_NAME.search(d.node.name)
        known = known or UNIT_WORD.search("\n".join(d.docs))
        if result is not None and "float" in words(ast.unparse(result)) and not known:
            out.append(f"{d.name} -> {ast.unparse(result)}")
    return out


def main(wanted: list[str]) -> None:
    every = tuple(modules())
    for m in every:
        if m.name in wanted or not wanted:
            for look in (undocumented, untold_errors, unknown_errors, without_unit):
                for found in look(m, every):
                    print(f"{look.__name__}: {found}")


if __name__ == "__main__":
    main(sys.argv[1:])
