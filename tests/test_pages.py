"README and pages: short enough, true to the files they name, every block runs, no link is broken."

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from arcpoint_ce.apps.cli import _app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "nbs" / "index.ipynb", *sorted((ROOT / "nbs" / "pages").glob("*.ipynb"))]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
BLOB = "https://github.com/arcpoint/arcpoint_ce/blob/main/"
RAW = "https://raw.githubusercontent.com/arcpoint/arcpoint_ce/main/"


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def test_the_readme_has_at_most_900_words():
    assert len(README.split()) <= 900


def test_the_readme_keeps_its_order():
    wanted = ["It forecasts", "surge.png", "git clone", "make run", "What it says of the last day"]
    wanted += ["**Bold: ours lost.**", "**My own log.**", "**Inside my gateway.**"]
    wanted += ["**In a notebook.**", "**A scheduled report.**", "**A live dashboard**", "## Where"]
    places = [README.index(text) for text in wanted]
    assert places == sorted(places)


def said_again(path):
    "(stored, made now) of every generated passage of a page."
    space, found = {}, []
    for cell in cells(path):
        text = source(cell)
        if cell["cell_type"] != "code" or not text.startswith(("#| hide", "#| echo: false")):
            continue
        shown = []
        space["display"] = shown.append
        tree = ast.parse(text)
        last = tree.body[-1]
        if text.startswith("#| echo") and isinstance(last, ast.Expr):
            tree.body[-1] = ast.parse("_last = None").body[0]
            tree.body[-1].value = last.value
        exec(compile(ast.fix_missing_locations(tree), str(path), "exec"), space)
        value = space.pop("_last", None)
        shown += [] if value is None else [value]
        stored = ["".join(o["data"]["text/markdown"]) for o in cell["outputs"] if "data" in o]
        found += zip(stored, [x.data for x in shown], strict=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_figures_are_those_of_the_files_that_they_name(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    for stored, now in said_again(path):
        assert stored == now, f"{path.name} is out of step: run it again, then `make readme`"


def test_a_figure_that_differs_is_seen(tmp_path, monkeypatch):
    page = tmp_path / "x.ipynb"
    output = {"output_type": "display_data", "data": {"text/markdown": ["n = 3"]}}
    code = "#| echo: false\nfrom IPython.display import Markdown\nMarkdown(f'n = {2 + 2}')"
    page.write_text(
        json.dumps({"cells": [{"cell_type": "code", "source": code, "outputs": [output]}]})
    )
    assert said_again(page) == [("n = 3", "n = 4")]


@pytest.mark.slow
def test_python_blocks_run_as_shown(tmp_path):
    found = blocks("python")
    assert len(found) >= 2
    script = tmp_path / "readme.py"
    script.write_text('if __name__ == "__main__":\n' + "".join(map(indented, found)))
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "drawn with probability" in done.stdout


def indented(block):
    return "".join(f"    {line}" for line in block.splitlines(keepends=True))


def commands():
    for block in blocks("sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


def test_shell_blocks_name_commands_and_options_that_exist(tmp_path):
    from typer.main import get_command

    own = get_command(_app).commands
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    seen = set()
    for words in commands():
        if words[0] == "make":
            assert words[1] in targets
            continue
        if words[0] == "git":
            continue
        assert words[0] == ".venv/bin/arcpoint", words
        command = own[words[1]]
        known = {o for p in command.params for o in [*p.opts, *p.secondary_opts]}
        assert not [w for w in words[2:] if w.startswith("-") and w not in known], words
        seen.add(words[1])
    assert {"check", "report", "simulate", "dashboard"} <= seen


def test_the_parameters_of_its_report_exist():
    from arcpoint_ce.apps.report import _find_template

    line = next(w for w in commands() if w[1:2] == ["report"])
    given = [line[k + 1] for k, w in enumerate(line) if w == "-p"]
    tagged = [
        c for c in cells(_find_template(line[2])) if "parameters" in c["metadata"].get("tags", [])
    ]
    assert all(re.search(rf"^{name}\b", source(tagged[0]), re.M) for name in given)


def links(text):
    return re.findall(r"\]\(([^)\s]+)\)", text)


def broken(path):
    "Links of a page that lead nowhere inside the repository."
    if path.suffix == ".ipynb":
        text = "\n".join(source(c) for c in cells(path) if c["cell_type"] == "markdown")
    else:
        text = path.read_text(encoding="utf-8")
    out = []
    for link in links(text):
        target = link.partition("#")[0]
        if target.startswith((BLOB, RAW)):
            where = ROOT / target.removeprefix(BLOB).removeprefix(RAW)
        elif re.match(r"[a-z]+:", target) or not target:
            continue
        else:
            where = path.parent / target
        if not where.exists():
            out.append(link)
    return out


@pytest.mark.parametrize("path", [*TEXTS, *PAGES], ids=lambda p: p.stem)
def test_no_link_is_broken(path):
    assert not broken(path)


def test_a_broken_link_is_seen(tmp_path):
    page = tmp_path / "x.md"
    page.write_text(f"[a](nowhere.md) [b]({BLOB}nowhere.py) [c]({BLOB}Makefile) [d](#here)")
    assert broken(page) == ["nowhere.md", f"{BLOB}nowhere.py"]


def test_contributing_says_each_thing_in_under_30_lines():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## Add (a[^\n]*)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert set(parts) == {"a policy", "a forecaster", "a fault", "a report", "a log layout"}
    assert all(len(part.strip().splitlines()) < 30 for part in parts.values())


def test_the_citation_names_nobody_who_was_invented():
    from configparser import ConfigParser

    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    cff = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f'- name: "{settings["DEFAULT"]["author"]}"' in cff
    assert f"version: {settings['DEFAULT']['version']}" in cff
    assert "given-names" not in cff and "@" not in cff


def test_a_run_that_says_otherwise_is_seen(tmp_path, capsys):
    import same_run

    stored = json.loads(same_run.STORED.read_text())
    run = tmp_path / "routing-1"
    run.mkdir()
    (run / "metrics.json").write_text(json.dumps(stored))
    assert same_run.main(tmp_path) == 0
    stored["rules"]["predictive"]["avoided_low"] += 1
    (run / "metrics.json").write_text(json.dumps(stored))
    assert same_run.main(tmp_path) == 1
    assert "rules.predictive.avoided_low: the run says 98" in capsys.readouterr().out


def test_ci_compares_a_fresh_run():
    assert "tests/same_run.py reports/out" in (ROOT / ".ci" / "run").read_text()
