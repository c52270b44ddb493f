"""Mutation testing: change one operator or number of the code at a time; does a test notice?

Usage: python tests/mutation.py --sample 300 [--seed 1]        needs `pip install cosmic-ray`

Draws mutants by chance, by cosmic-ray's operators, from each module in proportion. A first run of
the tests learns which of them reach which lines. Each mutant then meets the asserts of its notebook
and the tests that reach its line, quickest first. It lives in the memory of a forked process: no
file of the tree is changed. Results are kept, so that the same command goes on where it stopped.
"""

import argparse
import ast
import gc
import hashlib
import importlib.util
import inspect
import json
import multiprocessing
import os
import random
import re
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from difflib import unified_diff
from functools import cache
from itertools import accumulate
from math import sqrt
from pathlib import Path
from types import CodeType, FunctionType
from typing import NamedTuple

import house
import pytest
from hypothesis import HealthCheck, Phase, settings

KEPT = house.ROOT / "build" / "mutation"
PACKAGE = "arcpoint_ce"

# what is mutated: modules, and where only a part counts, names at their top level
PARTS: dict[str, tuple[str, ...]] = {
    "routing.records": (),
    "routing.steps": (),
    "routing.breaker": (),
    "routing.nowcast": (),
    "routing.policies": (),
    "routing.limits": (),
    "routing.clock": (),
    "routing.affinity": (),
    "routing.spending": (),
    "routing.decisions": (),
    "routing.measured": (),
    "routing.shared_limits": (),
    "routing.paces": (),
    "routing.router": (),
    "forecast.trust": (),
    "forecast.latency": (
        "_from_grid",
        "_Conformal",
        "_step_quantiles",
        "_joined",
        "_request_quantiles",
    ),
}
TESTS = ("tests/routing", "tests/forecast/test_trust.py", "tests/forecast/test_latency.py")

TIMED = "cost_a_decision_little"  # tests that measure time: on a busy machine they see mutants
# they import the whole package, which a mutant outside of functions would pay for each time
HEAVY = ("test_latency.py", "test_one_way.py", "test_spending.py")

# loaded once before all forks, because they take long
WARM = (
    "duckdb",
    "fastcore.test",
    "hypothesis.stateful",
    "matplotlib.pyplot",
    "numba",
    "pandas",
    "pybreaker",
    "river.drift",
    "sklearn.ensemble",
)

# Operators whose mutants are all alike or the same program as before:
LEFT_OUT = (
    # `is` for `==`: the same for small numbers and for the module's own constants
    r"Comparison.*_(Is|IsNot)_(Eq|NotEq|Lt|LtE|Gt|GtE)$",
    r"Comparison.*_(Eq|NotEq|Lt|LtE|Gt|GtE)_(Is|IsNot)$",
    # bits for arithmetic and the other way round: a TypeError on the first float or set
    r"Binary.*_(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)_(RShift|LShift|BitOr|BitAnd|BitXor)$",
    r"Binary.*_(RShift|LShift|BitOr|BitAnd|BitXor)_(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)$",
    # three more ways to write `+x` for `-x`, which stays
    r"Unary.*_(USub_Invert|USub_Not|Delete_USub)$",
)
SHOWN = ("__repr__", "__str__", "_repr_html_")  # functions that only show


class Mutant(NamedTuple):
    module: str
    operator: str
    occurrence: int  # which of the operator's places in the module, from 0 on
    line: int

    @property
    def key(self) -> str:
        return f"{self.module}:{self.operator}:{self.occurrence}"

    @property
    def source(self) -> str:
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        return mutate_code(text_of(self.module), get_operator(self.operator)(), self.occurrence)

    @property
    def diff(self) -> str:
        old, new = text_of(self.module).splitlines(), self.source.splitlines()
        return "\n".join(list(unified_diff(old, new, self.module, self.module, "", "", 1, ""))[2:])


@cache
def text_of(module: str) -> str:
    return path_of(module).read_text(encoding="utf-8")


def path_of(module: str) -> Path:
    return house.ROOT / PACKAGE / (module.replace(".", "/") + ".py")


# ---- which mutants there are


def span(node: ast.AST) -> tuple:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def untold(module: str) -> list[tuple]:
    "Spans of code that no test could tell apart: type annotations, what only shows, slots."
    found = []
    for node in ast.walk(ast.parse(text_of(module))):
        if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation:
            found.append(node.annotation)
        if isinstance(node, ast.keyword) and node.arg in ("slots", "repr"):
            found.append(node)
        if isinstance(node, house.DEFINITIONS):
            shows = [d for d in node.decorator_list if ast.unparse(d) == "displayed"]
            found += [node] if node.name in SHOWN else shows
        if isinstance(node, house.FUNCTIONS) and node.returns:
            found.append(node.returns)
    return [span(node) for node in found]


def wanted(module: str) -> list[tuple]:
    "Spans of the code that is mutated."
    tree = ast.parse(text_of(module))
    names = PARTS[module]
    return [span(n) for n in tree.body if not names or getattr(n, "name", None) in names]


def mutants_of(module: str) -> list[Mutant]:
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    nodes = list(ast_nodes(get_ast(text_of(module))))
    inside, outside, out = wanted(module), untold(module), []
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments() or any(re.search(pattern, name) for pattern in LEFT_OUT):
            continue
        places = [p for node in nodes for p in operator().mutation_positions(node)]
        for k, (start, _) in enumerate(places):
            told = not any(a <= start < b for a, b in outside)
            if told and any(a <= start < b for a, b in inside):
                out.append(Mutant(module, name, k, start[0]))
    return out


def draw(n: int, seed: int, modules: list[str]) -> list[Mutant]:
    "A sample, from each module in proportion to its mutants."
    mutants = {module: mutants_of(module) for module in modules}
    total = sum(map(len, mutants.values()))
    rng, out = random.Random(seed), []
    for module, found in mutants.items():
        share = min(len(found), max(1, round(n * len(found) / total)))
        out += rng.sample(found, share)
    rng.shuffle(out)
    return out


# ---- which tests reach which lines


class Blocks(ast.NodeTransformer):
    "Makes every block of statements inside functions say that it was reached."

    def __init__(self, module: str):
        self.module, self.depth = module, 0
        self.lines: list[tuple[int, int]] = []  # first and last of each block
        self.tree = ast.fix_missing_locations(self.visit(ast.parse(text_of(module))))

    def generic_visit(self, node):
        inside = isinstance(node, house.FUNCTIONS)
        self.depth += inside
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if self.depth and block and isinstance(block, list):
                self.lines.append((block[0].lineno, block[-1].end_lineno))
                call = ast.parse(f"_reached({block_name(self.module, block[0].lineno)!r})")
                docstring = block[:1] if ast.get_docstring(ast.Module(block, [])) else []
                setattr(node, name, docstring + call.body + block[len(docstring) :])
        super().generic_visit(node)
        self.depth -= inside
        return node


@cache
def blocks_of(module: str) -> Blocks:
    return Blocks(module)


def block_name(module: str, first_line: int) -> str:
    return f"{module}:{first_line}"


def block_of(mutant: Mutant) -> str:
    "The smallest block that holds a mutant's line; the module where it stands outside of them."
    lines = blocks_of(mutant.module).lines
    around = [begin for begin, end in lines if begin <= mutant.line <= end]
    return block_name(mutant.module, max(around)) if around else mutant.module


def load(module: str, code: str | ast.Module, **names) -> None:
    "Import a module of the package from changed code; in a process that has not imported it."
    name = f"{PACKAGE}.{module}"
    parent = importlib.import_module(name.rpartition(".")[0])
    spec = importlib.util.spec_from_file_location(name, path_of(module))
    loaded = sys.modules[name] = importlib.util.module_from_spec(spec)
    setattr(parent, name.rpartition(".")[2], loaded)
    vars(loaded).update(names)
    exec(compile(code, path_of(module), "exec"), vars(loaded))


class Reach:
    "A pytest plugin: the time of each test and the blocks that it reached."

    def __init__(self):
        self.blocks: set[str] = set()
        self.tests: dict[str, list] = {}  # seconds of CPU time, blocks; by test

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        self.blocks.clear()
        began = time.process_time()
        yield
        self.tests[item.nodeid] = [time.process_time() - began, sorted(self.blocks)]


class Session:
    "A pytest plugin: once the tests are collected, something else is done with them."

    def __init__(self, do):
        self.do = do  # takes the tests by name

    def pytest_runtestloop(self, session) -> bool:
        self.do({item.nodeid: item for item in session.items})
        return True


def set_hypothesis() -> None:
    "The same examples for every mutant, no search for the smallest, no limits on time."
    how = dict(
        database=None, derandomize=True, deadline=None, phases=[Phase.explicit, Phase.generate]
    )
    settings.register_profile("mutation", suppress_health_check=list(HealthCheck), **how)
    settings.load_profile("mutation")


def run_tests(plugin: object, files: Iterable[str] = TESTS) -> int:
    how = "-q -x -s -p no:cacheprovider --assert=plain --tb=no -W ignore".split()
    which = ["-m", "not slow", "-k", f"not {TIMED}"]
    return pytest.main([*how, f"--rootdir={house.ROOT}", *which, *files], plugins=[plugin])


def survey(out: Path) -> None:
    "Run all tests once and write down what each of them reaches. For a process of its own."
    reach = Reach()
    for module in PARTS:
        load(module, blocks_of(module).tree, _reached=reach.blocks.add)
    if run_tests(reach):
        sys.exit("the tests fail on the code as it is; mend them first")
    out.write_text(json.dumps(reach.tests))


def digest() -> str:
    "Of the code that is mutated and of the tests."
    files = [path_of(m) for m in PARTS]
    files += [f for t in TESTS for f in sorted((house.ROOT / t).rglob("*.py") or [house.ROOT / t])]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:12]


def surveyed() -> dict[str, list]:
    path = KEPT / f"reach-{digest()}.json"
    if not path.exists():
        print("learning which tests reach which lines", flush=True)
        forked(survey, path, limit_s=3600)
    return json.loads(path.read_text())


# ---- one mutant against its tests


def notebook_of(module: str) -> Path:
    edited = re.search(r"File to edit: \.\./\.\./(\S+\.ipynb)", text_of(module))
    return house.ROOT / edited[1]


def run_notebook(module: str) -> None:
    "The examples and asserts of a module's notebook, on the module that is loaded."
    names = dict(vars(importlib.import_module(f"{PACKAGE}.{module}")))
    for cell in house.read(notebook_of(module)).cells:
        skipped = re.search(r"^#\| *(slow|net|eval: *false)|^%", cell.source, re.M)
        if cell.kind == "code" and not cell.exported and not skipped:
            exec(compile(cell.source, module, "exec"), names)


def functions(code: CodeType) -> Iterator[CodeType]:
    "Those of a module and of its classes, in order; what stands inside them is theirs."
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from [part] if part.co_flags & inspect.CO_OPTIMIZED else functions(part)


def patch(mutant: Mutant) -> None:
    "Give the functions of a loaded module the mutant's code."
    path = str(path_of(mutant.module))
    old, new = (
        functions(compile(text, path, "exec")) for text in (text_of(mutant.module), mutant.source)
    )
    changed = {a: b for a, b in zip(old, new, strict=True) if a != b}
    for f in gc.get_objects():
        if isinstance(f, FunctionType) and f.__code__ in changed:
            f.__code__ = changed[f.__code__]


def run_items(items: list[pytest.Item]) -> None:
    "Run tests until one fails; the exit code says whether one did."
    for item, following in zip(items, [*items[1:], None]):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if item.session.testsfailed:
            sys.exit(1)


def trial(mutant: Mutant, items: list[pytest.Item]) -> None:
    "Exit code 0 if nothing notices a mutant inside a function. For a process of its own."
    patch(mutant)
    run_notebook(mutant.module)
    run_items(items)


def trial_afresh(mutant: Mutant, tests: list[str]) -> None:
    "The same for a mutant outside of functions: everything is imported anew."
    load(mutant.module, mutant.source)
    run_notebook(mutant.module)
    tests = [t for t in tests if not t.partition("::")[0].endswith(HEAVY)] or tests
    files = {t.partition("::")[0] for t in tests}
    if tests:
        sys.exit(run_tests(Session(lambda items: run_items([items[t] for t in tests])), files))


def forked(do, *args, limit_s: float) -> int | None:
    """The exit code of a function in a process of its own, with limits on time and memory; None:
    it took too long.
    """

    def child():
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s), int(limit_s) + 1))
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        do(*args)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(10 * limit_s)  # others may use the machine too
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode if process.exitcode >= 0 else None


def by_block(reach: dict[str, list]) -> dict[str, list[tuple[float, str]]]:
    "Seconds and name of the tests that reach a block, or any block of a module; quickest first."
    out: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for name, (seconds, blocks) in sorted(reach.items(), key=lambda item: item[1][0]):
        for block in {*blocks, *(b.partition(":")[0] for b in blocks)}:
            out[block].append((seconds, name))
    return out


def first(tests: list[tuple[float, str]], most_s: float) -> list[str]:
    "Those that take at most so long together."
    total_s = list(accumulate(seconds for seconds, _ in tests))
    return [name for (_, name), until_s in zip(tests, total_s) if until_s <= most_s]


class Judge:
    "Tries mutants and keeps the results in a file."

    def __init__(self, most_s: float):
        self.most_s, self.tests = most_s, by_block(surveyed())
        self.path = KEPT / f"results-{digest()}.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.known = {row["key"]: row for row in map(json.loads, lines)}

    def judge(self, mutants: list[Mutant], items: dict[str, pytest.Item] | None = None) -> None:
        for k, mutant in enumerate(mutants, 1):
            if mutant.key not in self.known:
                tests = first(self.tests[block_of(mutant)], self.most_s)
                how = (trial_afresh, mutant, tests)
                if items:
                    how = trial, mutant, [items[t] for t in tests]
                self.keep(mutant, forked(*how, limit_s=10 + 2 * self.most_s), len(tests))
            print(f"{k}/{len(mutants)} {self.known[mutant.key]['result']} {mutant.key}", flush=True)

    def keep(self, mutant: Mutant, code: int | None, tests: int) -> None:
        result = "survived" if code == 0 else "timed out" if code is None else "killed"
        row = dict(key=mutant.key, module=mutant.module, result=result, tests=tests)
        self.known[mutant.key] = row
        with self.path.open("a", encoding="utf-8") as file:
            print(json.dumps(row), file=file)

    def judge_all(self, mutants: list[Mutant]) -> list[dict]:
        "Those inside functions within one session of pytest, which makes them quick."
        outside = [m for m in mutants if block_of(m) == m.module]
        inside = [m for m in mutants if m not in outside]
        run_tests(Session(lambda items: self.judge(inside, items)))
        self.judge(outside)
        return [self.known[m.key] for m in mutants]


def interval(k: int, n: int) -> tuple[float, float]:
    "95 % interval of a share (Wilson, 1927)."
    z, p = 1.96, k / n
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return tuple((p + z * z / (2 * n) + s * half) / (1 + z * z / n) for s in (-1, 1))


def tell(results: list[dict], mutants: dict[str, Mutant]) -> None:
    survivors = [r for r in results if r["result"] == "survived"]
    for r in survivors:
        print(f"\nsurvived {r['tests']} tests: {r['key']}\n{mutants[r['key']].diff}")
    print(f"\n{'module':20} killed    of  rate  95 % interval")
    of, lived = (Counter(r["module"] for r in rows) for rows in (results, survivors))
    for module, n in [*of.items(), ("all", len(results))]:
        k = n - (len(survivors) if module == "all" else lived[module])
        low, high = interval(k, n)
        print(f"{module:20} {k:6} {n:5}  {k / n:4.0%}  {low:.0%} to {high:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--sample", type=int, default=300, help="mutants to draw")
    add("--seed", type=int, default=1, help="another seed draws other mutants")
    add("--modules", nargs="*", default=list(PARTS), choices=PARTS, metavar="ROOM.MODULE")
    add("--most-s", type=float, default=30.0, help="CPU time of the tests that a mutant meets, s")
    a = parser.parse_args()
    os.environ["MPLBACKEND"] = "Agg"
    sys.path.insert(0, str(house.ROOT))
    for name in WARM:
        importlib.import_module(name)
    set_hypothesis()
    KEPT.mkdir(parents=True, exist_ok=True)
    mutants = draw(a.sample, a.seed, a.modules)
    tell(Judge(a.most_s).judge_all(mutants), {m.key: m for m in mutants})


if __name__ == "__main__":
    main()
