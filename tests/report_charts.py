"Looks at the charts of a report as a reader would: overlaps, cut-off text, empty panels, units."

import ast
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from itertools import combinations
from unittest.mock import patch

import IPython.display
import matplotlib
import nbformat
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from arcpoint_ce.apps.report import templates

matplotlib.use("Agg")
GRID = "#DDDDDD"  # too pale for anything but a grid


def _box(text: Text, renderer, ax: Axes | None = None) -> Bbox | None:
    "Where a text stands, a little smaller; None where nothing is seen of it."
    if not (text.get_visible() and text.get_text().strip()):
        return None
    if ax is not None and text.axes is ax and text.get_clip_on():
        return None
    box = text.get_window_extent(renderer)
    return Bbox.from_extents(box.x0 + 0.5, box.y0 + 0.5, box.x1 - 0.5, box.y1 - 0.5)


def _in_view(axis, text: Text, place: float) -> bool:
    low, high = sorted(axis.get_view_interval())
    slack = 1e-6 * (high - low)
    return low - slack <= place <= high + slack


def _tick_texts(ax: Axes) -> Iterator[Text]:
    "Labels of ticks that are drawn."
    for axis in (ax.xaxis, ax.yaxis):
        if not axis.get_visible():
            continue
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if _in_view(axis, tick.label1, tick.get_loc()):
                yield from (t for t in (tick.label1, tick.label2) if t.get_visible())
        yield axis.get_offset_text()


def _texts(figure: Figure) -> Iterator[tuple[str, Text]]:
    "Every text of a figure, with a word on what it is."
    for k, ax in enumerate(figure.axes):
        if not ax.get_visible():
            continue
        yield from ((f"tick of panel {k}", t) for t in _tick_texts(ax))
        titles = (ax.title, ax._left_title, ax._right_title)
        yield from ((f"title of panel {k}", t) for t in titles)
        yield from ((f"label of panel {k}", axis.label) for axis in (ax.xaxis, ax.yaxis))
        yield from ((f"text in panel {k}", t) for t in ax.texts)
        if legend := ax.get_legend():
            yield from ((f"legend of panel {k}", t) for t in legend.get_texts())
    for legend in figure.legends:
        yield from (("legend of the figure", t) for t in legend.get_texts())
    yield from (("text of the figure", t) for t in figure.texts)


def _numbers(axis) -> bool:
    "Whether an axis shows numbers, which need a unit."
    said = [t.label1.get_text() for t in axis.get_major_ticks() if t.label1.get_visible()]
    return any(s.strip("−-$%., ").replace(".", "").replace(",", "").isdigit() for s in said if s)


def _panel_faults(k: int, ax: Axes) -> Iterator[str]:
    "An empty panel, or an axis of numbers that does not say what they are."
    if not ax.has_data():
        yield f"panel {k} is empty"
    shared = {"x": ax.figure.get_supxlabel(), "y": ax.figure.get_supylabel()}
    for name, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
        told = axis.label.get_text() or shared[name]
        if axis.get_visible() and _numbers(axis) and not told:
            yield f"the {name} axis of panel {k} shows numbers without saying of what"
    for line in ax.lines:
        if line.get_visible() and min(to_rgb(line.get_color())) >= min(to_rgb(GRID)):
            yield f"panel {k} has a line as pale as its grid"


def _legend_faults(figure: Figure, renderer) -> Iterator[str]:
    "A legend that stands on data."
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes)]
    for legend in filter(None, legends):
        box = legend.get_window_extent(renderer)
        for k, ax in enumerate(figure.axes):
            inner = ax.get_window_extent(renderer)
            if ax.get_visible() and box.shrunk(0.98, 0.98).overlaps(inner.shrunk(0.99, 0.99)):
                yield f"a legend stands on the data of panel {k}"


def chart_faults(figure: Figure) -> list[str]:
    "What a reader would object to."
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    page = figure.bbox.padded(1.5)
    boxes = [
        (what, text.get_text(), box)
        for what, text in _texts(figure)
        if (box := _box(text, renderer)) is not None
    ]
    faults = [
        f"{what} is cut off: {said!r}"
        for what, said, box in boxes
        if not (page.x0 <= box.x0 and page.y0 <= box.y0 and box.x1 <= page.x1 and box.y1 <= page.y1)
    ]
    faults += [
        f"{what} {said!r} stands on {other} {also!r}"
        for (what, said, box), (other, also, there) in combinations(boxes, 2)
        if box.overlaps(there)
    ]
    faults += [f"{what} shows its markup: {said!r}" for what, said, _ in boxes if "$\\math" in said]
    for k, ax in enumerate(figure.axes):
        if ax.get_visible():
            faults += _panel_faults(k, ax)
    return faults + list(_legend_faults(figure, renderer))


class Drawn:
    """A template, run here: what its charts look like, and what it said.

    With `only`, the imports and the cells that hold one of these texts are run, on the names
    given; else all of it, and the names are parameters.
    """

    def __init__(self, name: str, only: tuple[str, ...] = (), **given):
        self.name, self.cell, self.only, self.given = name, 0, only, given
        self.faults: list[str] = []
        self.figures, self.said, self.names = 0, "", {"display": self._show}
        plt.close("all")
        with (
            matplotlib.rc_context(),
            patch.object(plt, "show", self._look),
            patch.object(IPython.display, "display", self._show),
            redirect_stdout(StringIO()),
        ):
            for self.cell, cell in enumerate(nbformat.read(templates()[name], 4).cells):
                if cell.cell_type == "code":
                    self._take(cell)

    def _take(self, cell):
        parameters = "parameters" in cell.metadata.get("tags", ())
        imports = "open_report()" in cell.source
        if not self.only or parameters or imports or any(x in cell.source for x in self.only):
            self._run(cell.source)
        if parameters and not self.only:
            assert self.given.keys() <= self.names.keys(), self.given
        if imports if self.only else parameters:
            self.names |= self.given

    def _run(self, source: str):
        "As a kernel would: the value of a last expression is shown, and what was drawn."
        *before, last = ast.parse(source).body
        where = f"{self.name}, cell {self.cell}"
        if not isinstance(last, ast.Expr):
            before, last = [*before, last], None
        exec(compile(ast.Module(before, []), where, "exec"), self.names)  # our own template
        if last is not None:
            self._show(eval(compile(ast.Expression(last.value), where, "eval"), self.names))
        self._look()

    def _show(self, *shown, **_):
        for what in shown:
            self._note(what)

    def _note(self, what):
        as_page = getattr(what, "_repr_html_", None)
        said = what.data if isinstance(what, IPython.display.DisplayObject) else None
        self.said += str(said or (as_page and as_page()) or what)

    def _look(self):
        for number in plt.get_fignums():
            self.figures += 1
            found = chart_faults(plt.figure(number))
            self.faults += [f"{self.name}, cell {self.cell}: {fault}" for fault in found]
        plt.close("all")
