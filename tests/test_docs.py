"The site: every public name is on an API page, and no link of the built pages is broken."

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import patch
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build)


@pytest.mark.slow
def test_every_public_name_is_asked_for_on_the_page_of_its_module():
    found = build.modules()
    assert len(found) > 100 and "compare" in found["arcpoint_ce.lab.comparison"]
    for module, names in found.items():
        page = build.api_page(module, names)
        assert not [n for n in names if f":: {module}.{n}\n" not in page], module


@pytest.mark.slow
def test_the_sources_hold_every_page_and_no_hidden_cell(tmp_path):
    build.write_sources(tmp_path / "src")
    index = (tmp_path / "src" / "index.md").read_text()
    for folder in ("pages", "tutorials"):
        for path in (ROOT / "nbs" / folder).glob("*.ipynb"):
            copy = tmp_path / "src" / folder / path.name
            assert "#| hide" not in copy.read_text() and f"{folder}/{path.stem}" in index
    assert build.BLOB + "nbs/pages" not in index and "raw.githubusercontent" not in index


def sample(
    wait_s: float,  # so long, s
    # a comment above
    # of two lines
    name: str = "a#b",
    *,
    plain: int = 0,
    **more,  # the rest, "quoted" and it's fine
) -> float:  # what is left, s
    "A sample."
    return wait_s  # no parameter


def short(x: float) -> float:  # twice as much
    return 2 * x


def test_comments_of_parameters_are_read():
    assert build.parameters_of(sample) == {
        "wait_s": "so long, s",
        "name": "a comment above of two lines",
        "more": """the rest, "quoted" and it's fine""",
        "return": "what is left, s",
    }
    assert build.parameters_of(short) == {"return": "twice as much"}
    assert build.parameters_of(len) == build.parameters_of(3) == {}


def test_comments_of_parameters_stand_on_the_pages():
    from arcpoint_ce.lab.comparison import compare
    from arcpoint_ce.routing.router import RouterConfig

    conf: dict = {}
    exec(build.CONF, conf)
    for obj, name in ((compare, "seeds"), (RouterConfig, "slo_ms")):
        lines = ["A line."]
        with patch.dict(sys.modules, {"build": build}):
            conf["plain_docstrings"](None, "function", "x", obj, {}, lines)
        found = next(x for x in lines if x.startswith(f":param {name}: "))
        assert found.endswith(conf["escaped"](build.parameters_of(obj)[name]))


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.ids, self.loaded = [], set(), []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs.get("id"), attrs.get("name")}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        elif tag in ("img", "script", "link", "iframe"):
            self.loaded += [attrs[k] for k in ("src", "href") if attrs.get(k)]


def parsed(path):
    page = Links()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def broken(html):
    "Links within a folder of pages that lead nowhere, and what pages load from elsewhere."
    pages = {path.resolve(): parsed(path) for path in html.rglob("*.html")}
    out = []
    for path, page in pages.items():
        out += [f"{path.name} loads {x}" for x in page.loaded if re.match(r"(https?:)?//", x)]
        for link in page.links + page.loaded:
            if re.match(r"[a-z+]+:|//", link):
                continue
            where, _, mark = unquote(link).partition("#")
            target = (path.parent / where.partition("?")[0]).resolve() if where else path
            if target.is_dir():
                target /= "index.html"
            marks = pages[target].ids if target in pages else {mark}
            if not target.exists() or mark and mark not in marks:
                out.append(f"{path.name}: {link}")
    return out


def test_a_broken_link_is_seen(tmp_path):
    (tmp_path / "b.html").write_text('<p id="here"></p>')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here"></a><a href="b.html#gone"></a><a href="c.html"></a>'
        '<script src="https://example.com/x.js"></script>'
    )
    wrong = ["a.html loads https://example.com/x.js", "a.html: b.html#gone", "a.html: c.html"]
    assert broken(tmp_path) == wrong


@pytest.mark.slow  # Sphinx imports every module and reads every page: about half a minute
def test_the_built_site_has_no_broken_link_and_every_public_name(tmp_path):
    for module in ("sphinx", "myst_nb"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install -e '.[docs]'")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "docs" / "build.py", tmp_path]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not broken(tmp_path / "html")
    for module, names in build.modules().items():
        text = (tmp_path / "html" / "api" / f"{module}.html").read_text()
        assert not [n for n in names if f"{module}.{n}" not in text], module
    text = (tmp_path / "html" / "api" / "arcpoint_ce.routing.router.html").read_text()
    assert "latency limit where neither request, tier nor backend names one, ms" in text


@pytest.mark.parametrize(
    "line, says",
    [
        ("takes `x` and *all*", r"takes ``x`` and \*all\*"),
        ("the `n`th", "the nth"),
        ("a tick ` alone_", r"a tick \` alone\_"),
    ],
    ids=["code", "glued", "odd"],
)
def test_a_docstring_is_shown_as_it_was_written(line, says):
    conf: dict = {}
    exec(build.CONF, conf)
    assert conf["escaped"](line) == says
