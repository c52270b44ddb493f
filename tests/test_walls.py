"""The walls of the house: floors, one-way imports, standard library only, no pickle, no hidden
clock or chance, tidy notebooks.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import arcpoint_ce

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "arcpoint_ce"
HEADER = re.compile(r"File to edit: \.\./\.\./nbs/(\w+)/(\d\d[a-z]?)_(\w+)\.ipynb")
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "_modidx.py"))
NOTEBOOKS = sorted(
    p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
)
TEMPLATES = sorted(p for p in (ROOT / "reports").glob("*.ipynb"))


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def floor_of(source):
    "(room, number, stem) from the generated header; None in a file that nbdev did not write."
    m = HEADER.search(source)
    return m.groups() if m else None


FLOORS = {name_of(p): floor_of(p.read_text()) for p in MODULES}


def imports(source, module):
    """Absolute names of everything that a module imports, in functions and under conditions too,
    relative ones resolved.
    """
    out, package = [], module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            out += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            out += [base, *(f"{base}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Call) and getattr(
            node.func, "id", getattr(node.func, "attr", "")
        ) in ("import_module", "__import__"):
            if node.args and isinstance(node.args[0], ast.Constant):
                out.append(str(node.args[0].value).lstrip("."))
    return out


def upward(source, module, number, floors):
    "Imports of a module that do not go down."
    return [
        n for n in imports(source, module) if n != module and n in floors and floors[n][1] >= number
    ]


@pytest.mark.parametrize(
    "line",
    [
        "import arcpoint_ce.apps.cli",
        "from arcpoint_ce.apps import cli",
        "from ..apps.cli import main",
        "from ..apps import cli",
        "def f():\n    from ..apps.cli import main",
        "if 1:\n    import arcpoint_ce.apps.cli as c",
        "import importlib\nimportlib.import_module('arcpoint_ce.apps.cli')",
    ],
)
def test_an_import_that_goes_up_is_seen(line):
    floors = {
        "arcpoint_ce.routing.records": ("routing", "00", "records"),
        "arcpoint_ce.apps.cli": ("apps", "84", "cli"),
    }
    assert upward(line, "arcpoint_ce.routing.records", "00", floors) == ["arcpoint_ce.apps.cli"]
    assert not upward(line, "arcpoint_ce.routing.records", "84a", floors)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_flow_down(path):
    module = name_of(path)
    floor = FLOORS[module]
    assert floor, f"{module} names no notebook: exported code comes from notebooks only"
    room, number, stem = floor
    assert (
        module == f"arcpoint_ce.{room}.{stem}"
        and (ROOT / "nbs" / room / f"{number}_{stem}.ipynb").exists()
    )
    assert not upward(path.read_text(), module, number, FLOORS), (
        f"{module} ({number}) imports from its own floor or above"
    )


def test_rooms_stand_on_their_floors_and_numbers_are_not_shared():
    tens = {
        "routing": "0",
        "telemetry": "1",
        "forecast": "2",
        "engine": "3",
        "lab": "4",
        "context": "5",
        "live": "6",
        "proof": "7",
        "dashboard": "8",
        "apps": "8",
    }
    assert all(tens[room] == number[0] for room, number, _ in FLOORS.values())
    numbers = [number for _, number, _ in FLOORS.values()]
    assert len(set(numbers)) == len(numbers)


def loaded(code):
    "Top-level names of the modules that a fresh interpreter has loaded after `code`."
    run = subprocess.run(
        [
            sys.executable,
            "-S",
            "-c",
            "import sys; sys.path[:0] = "
            f"{[str(ROOT), *[p for p in sys.path if 'site-packages' in p]]!r}\n{code}\n"
            "print(*sorted({m.partition('.')[0] for m in sys.modules}))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(run.stdout.split())


def strangers(code):
    return loaded(code) - loaded("pass") - set(sys.stdlib_module_names) - {"arcpoint_ce"}


@pytest.mark.parametrize("module", [m for m, f in FLOORS.items() if f and f[0] == "routing"])
def test_routing_loads_only_the_standard_library(module):
    assert not strangers(f"import {module}")


def test_a_stranger_would_be_seen():
    assert "numpy" in strangers("import arcpoint_ce.routing.records, numpy")


def test_importing_the_package_loads_next_to_nothing():
    new = loaded("import arcpoint_ce") - loaded("pass")
    assert (
        not new & {"pandas", "numpy", "sklearn", "duckdb", "numba", "river"} and len(new) <= 15
    ), sorted(new)


def test_public_names_resolve_and_are_listed():
    assert {
        "Backend",
        "Request",
        "Outcome",
        "Decision",
        "Router",
        "load_requests",
        "run_report",
        "__version__",
    } <= set(arcpoint_ce.__all__)
    for name in arcpoint_ce.__all__:
        assert getattr(arcpoint_ce, name) is not None and name in dir(arcpoint_ce)
    with pytest.raises(AttributeError, match="no attribute 'nobody'"):
        arcpoint_ce.nobody


# ---- what exported code must not do


def dotted(node):
    "`a.b.c` of an attribute chain; '' where it does not start at a name."
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def aliases(tree):
    "Local name -> what it stands for, through every form of import."
    out = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                out[a.asname or a.name.partition(".")[0]] = (
                    a.name if a.asname else a.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for a in node.names:
                out[a.asname or a.name] = f"{node.module}.{a.name}"
    return out


def uses(source):
    """Full dotted names of everything that is read from an imported module, and every keyword
    argument as `name=value`.
    """
    tree = ast.parse(source)
    known = aliases(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)) and (d := dotted(node)):
            head, _, rest = d.partition(".")
            if head in known:
                yield ".".join(x for x in (known[head], rest) if x)
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            yield f"{node.arg}={node.value.value!r}"


PICKLE = re.compile(
    r"^(pickle|cPickle|_pickle|cloudpickle|dill|shelve|marshal)(\.|$)|^joblib\.(load|dump)$|^(pandas\.)?read_pickle$|^torch\.load$|^allow_pickle=True$"
)
HIDDEN = re.compile(
    r"^time\.(time|time_ns|localtime|gmtime)$|^datetime\.(datetime|date)\.(now|utcnow|today)$|^datetime\.now$"
    r"|^random\.(?!Random$|SystemRandom$)\w+|^numpy\.random\.(?!default_rng$|Generator$|SeedSequence$|PCG64$|BitGenerator$)\w+"
)


def broken(source, rule):
    return sorted({u for u in uses(source) if rule.search(u)})


@pytest.mark.parametrize(
    "rule, bad",
    [
        (PICKLE, "import pickle\npickle.loads(b'')"),
        (PICKLE, "from joblib import load as l\nl('x')"),
        (PICKLE, "import numpy as np\nnp.load('x', allow_pickle=True)"),
        (PICKLE, "import dill"),
        (PICKLE, "import pandas as pd\npd.read_pickle('x')"),
        (PICKLE, "def f():\n    import cloudpickle as c\n    c.loads(b'')"),
        (HIDDEN, "import time\ntime.time()"),
        (HIDDEN, "from time import time\ntime()"),
        (HIDDEN, "from datetime import datetime\ndatetime.now()"),
        (HIDDEN, "import datetime as dt\ndt.datetime.utcnow()"),
        (HIDDEN, "import random\nrandom.random()"),
        (HIDDEN, "from random import shuffle\nshuffle([])"),
        (HIDDEN, "import numpy as np\nnp.random.seed(1)"),
        (HIDDEN, "from numpy.random import normal\nnormal()"),
        (HIDDEN, "import time\ndef f(clock=time.time): pass"),
    ],
)
def test_a_forbidden_use_is_seen(rule, bad):
    assert broken(bad, rule) or any(rule.search(n) for n in imports(bad, "x.y"))


# A report's record and folder name carry the time of the run; `run_report` takes the clock as an
# argument, and this is its default. `arcpoint serve` lives in real time.
WALL_CLOCK = {
    ("arcpoint_ce.apps.report", "datetime.datetime.now"),
    ("arcpoint_ce.apps.cli", "time.time"),
    ("arcpoint_ce.live.envoy", "time.time"),  # uvicorn makes the application itself
    ("arcpoint_ce.live.litellm", "time.time"),  # LiteLLM makes the callback itself
    ("arcpoint_ce.live.predictor", "time.time"),  # its answers carry the date
}


@pytest.mark.slow
@pytest.mark.parametrize("path", [*MODULES, PACKAGE / "__init__.py"], ids=name_of)
def test_no_pickle_no_hidden_clock_no_global_chance(path):
    source = path.read_text()
    assert not broken(source, PICKLE) and not any(
        PICKLE.search(n) for n in imports(source, name_of(path))
    )
    assert not [
        u
        for u in broken(source, HIDDEN)
        if u not in ("datetime.datetime", "datetime.date") and (name_of(path), u) not in WALL_CLOCK
    ]
    assert "import *" not in source


# ---- notebooks


def cells(path):
    return json.loads(path.read_text())["cells"]


def exported(path):
    "Exported cells, as lists of lines without directives."
    out = []
    for c in cells(path):
        src = "".join(c["source"])
        if c["cell_type"] == "code" and re.search(r"^#\|\s*export", src, re.M):
            out.append([line for line in src.strip().split("\n") if not re.match(r"#\|", line)])
    return out


def untidy(path):
    "What is wrong with a stored notebook. Tutorials, and only they, keep their pictures."
    nb, wrong = json.loads(path.read_text()), []
    if path.stat().st_size > 150 * 1024:
        wrong.append("larger than 150 KB")
    if nb["metadata"].get("kernelspec", {}).get("name") != "python3" or set(nb["metadata"]) != {
        "kernelspec"
    }:
        wrong.append(f"metadata {sorted(nb['metadata'])}")
    for c in nb["cells"]:
        if set(c["metadata"]) - {"tags"}:
            wrong.append(f"cell {c['id']}: metadata {sorted(c['metadata'])}")
        if c.get("execution_count") is not None:
            wrong.append(f"cell {c['id']}: execution count")
        for o in c.get("outputs", []):
            if any(
                k.startswith("image/") or k == "application/pdf" for k in o.get("data", {})
            ) or "data:image" in json.dumps(o):
                if path.parent.name != "tutorials":
                    wrong.append(f"cell {c['id']}: picture")
            if o["output_type"] == "error":
                wrong.append(f"cell {c['id']}: an error is stored")
    return wrong


@pytest.mark.parametrize("path", [*NOTEBOOKS, *TEMPLATES], ids=lambda p: p.stem)
def test_notebooks_are_tidy(path):
    assert not untidy(path)


def test_an_untidy_notebook_is_seen(tmp_path):
    bad = {
        "metadata": {"kernelspec": {"name": "mine"}},
        "cells": [
            {
                "id": "a",
                "cell_type": "code",
                "metadata": {"scrolled": True},
                "execution_count": 3,
                "source": "x" * 200_000,
                "outputs": [
                    {"output_type": "display_data", "data": {"image/png": "=="}},
                    {"output_type": "error"},
                ],
            }
        ],
    }
    (tmp_path / "x.ipynb").write_text(json.dumps(bad))
    assert len(untidy(tmp_path / "x.ipynb")) == 6
    (tmp_path / "tutorials").mkdir()
    (tmp_path / "tutorials" / "x.ipynb").write_text(json.dumps(bad))
    assert len(untidy(tmp_path / "tutorials" / "x.ipynb")) == 5  # a picture may stay there


def test_every_exporting_notebook_is_the_one_of_its_module():
    for p in NOTEBOOKS:
        m = next(
            (
                m[1]
                for c in cells(p)
                if (m := re.search(r"^#\|\s*default_exp\s+(\S+)", "".join(c["source"]), re.M))
            ),
            None,
        )
        if m is None:
            assert not exported(p) or p.name == "index.ipynb", f"{p.name} exports without a module"
            continue
        room, stem = m.split(".")
        assert (
            FLOORS.get(f"arcpoint_ce.{m}") == (room, p.name.split("_")[0], stem)
            and p.parent.name == room
            and p.stem.partition("_")[2] == stem
        )


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.stem)
def test_templates_have_one_cell_of_parameters(path):
    assert sum("parameters" in c["metadata"].get("tags", []) for c in cells(path)) == 1


# ---- files


def tracked():
    """Files under version control and new ones that are not ignored; without git every file of the
    package, notebooks and tests.
    """
    run = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    names = (
        run.stdout.split("\n")
        if run.returncode == 0
        else [
            str(p.relative_to(ROOT))
            for d in ("arcpoint_ce", "nbs", "tests", "reports")
            for p in (ROOT / d).rglob("*")
        ]
    )
    return [ROOT / n for n in names if n and (ROOT / n).is_file()]


PLACES = re.compile(
    r"(?<![\w.\])}\"'/*-])/(?:home|root|Users|work|tmp|mnt|var/folders)/\w|[A-Z]:\\\\?Users|(?:^|\s)-?-(?:index-url|extra-index-url|find-links|trusted-host)\b"
    r"|\b(?:[\w-]+\.)*(?:artifactory|nexus|devpi)[\w.-]*\.\w+|\b\d{1,3}(?:\.\d{1,3}){3}/simple"
    r"|/tmp/" + r"tmp\w{6,}",  # a random folder, in an output that was kept
    re.M,
)


@pytest.mark.parametrize(
    "bad",
    [
        "open(/home/me/x)",
        '"/tmp/' + "tmpab12cd_e/mine.csv: 3 rows",
        "file = /mnt/a",
        "see /" + "root/x",
        "C:\\Users\\me",
        "--index-url x",
        "-i\n--extra-index-url=y",
        "https://artifactory.firm.com/x",
    ],
)
def test_a_machine_path_is_seen(bad):
    assert PLACES.search(bad)


@pytest.mark.slow
def test_no_machine_paths_and_no_index_addresses():
    found = []
    for p in tracked():
        if p.suffix in (".parquet", ".gz", ".png", ".npz") or p == Path(__file__):
            continue
        for m in PLACES.finditer(p.read_text(errors="replace")):
            found.append((str(p.relative_to(ROOT)), m[0].strip()))
    assert not found


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-run.lock"])
def test_the_lock_file_pins_everything_with_hashes(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"^(-|--)|https?://|file:|@ ", re.sub(r"\\\n", " ", text), re.M)
    entries = [
        line
        for line in re.sub(r"\\\n", " ", text).split("\n")
        if line.strip() and not line.strip().startswith("#")
    ]
    assert len(entries) > 100
    for e in entries:
        assert re.match(
            r"^[A-Za-z0-9._-]+(\[[\w,-]+\])?==[^\s;]+( ;[^\n]*?)?\s+--hash=sha256:[0-9a-f]{64}", e
        ), e[:80]


def test_the_page_of_what_moved_names_modules_that_exist():
    text = "".join("".join(c["source"]) for c in cells(ROOT / "nbs" / "what_moved.ipynb"))
    rows = re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|$", text, re.M)
    here = {name.removeprefix("arcpoint_ce.") for name in FLOORS}
    assert len(rows) > 50
    assert {now for _, now in rows} <= here
    assert not {before for before, _ in rows} & here


def private_words(source):
    "Private names that stand in sentences, outside of backticks."
    words = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            prose = re.sub(r"`[^`]*`", "", ast.get_docstring(node) or "")
            words += re.findall(r"(?<![\w.'\"(=])_[a-z]\w*(?![\w(])", prose)
    return words


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_sentences_name_no_private_thing(path):
    assert private_words(path.read_text()) == []


def test_a_private_word_is_seen():
    source = 'def f():\n    "What was _learned, and `_quoted`."\n'
    assert private_words(source) == ["_learned"]
