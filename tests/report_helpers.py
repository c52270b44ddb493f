"What the tests of reports share: small templates, and a reader of pages."

import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = """n: int = 3  # how many numbers
scale: float = 1.0  # what they are multiplied by
word: str = "none"  # any text
quick: bool = False  # less work
out_dir: str = ""  # filled by run_report"""
METRICS = (
    "from arcpoint_ce.apps.report import write_metrics\nwrite_metrics(out_dir, {'total': "
    "scale*n, 'word': word, 'data_sha256': 'ab'*32});"
)


def template(
    path: Path,
    *code: str,
    parameters: str = PARAMETERS,
    tag: bool = True,
    title: str = "# Small numbers <&>",
) -> Path:
    "A notebook with a title, a parameters cell and some code."
    cells = [
        new_markdown_cell(title),
        new_code_cell(parameters, metadata={"tags": ["parameters"]} if tag else {}),
        *map(new_code_cell, code or (METRICS,)),
    ]
    spec = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    nbformat.write(new_notebook(cells=cells, metadata=spec), path)
    return path


class _Links(HTMLParser):
    "Collects everything that a browser would load or follow."

    def __init__(self):
        super().__init__()
        self.found, self.inside = [], ""

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        self.found += [
            (tag, k, v or "")
            for k, v in attrs
            if k
            in ("src", "href", "srcset", "data", "action", "poster", "xlink:href", "background")
        ]
        self.found += [
            (tag, "style", u)
            for k, v in attrs
            if k == "style"
            for u in re.findall(r"url\(([^)]*)\)", v or "")
        ]

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, text):
        if self.inside == "style":
            self.found += [
                ("style", "url", u)
                for u in re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", text)
                for u in u
                if u
            ]
        if self.inside == "script":
            self.found += [
                ("script", "text", u)
                for u in re.findall(r"https?://[^\s'\"]+|import\([^)]*\)", text)
            ]


def leaving(page: Path) -> list[tuple[str, str, str]]:
    "Links of a page that leave the file: anything but an anchor or embedded data."
    reader = _Links()
    reader.feed(page.read_text(encoding="utf-8"))
    return [
        (t, k, v[:100])
        for t, k, v in reader.found
        if not v.strip("'\" ").startswith(("#", "data:"))
    ]


def warnings_in(path: Path) -> list[str]:
    "What a run notebook printed on stderr: a reader takes a warning for a fault of the report."
    cells = nbformat.read(path, as_version=4).cells
    return [
        out.text
        for cell in cells
        for out in cell.get("outputs", ())
        if out.output_type == "stream" and out.name == "stderr"
    ]
