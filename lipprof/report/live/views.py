"""What the live dashboard shows: a run, several runs over each other, or a sentence instead.

Text is filled into the templates of the page, which escape it; figures are those of the page, as
far as they are near the browser's screen: drawing them all takes most of a second.
"""

from collections import OrderedDict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from lipprof.errors import RunFileError
from lipprof.record import open_run
from lipprof.report import derived, html
from lipprof.report.comparison.compare import By
from lipprof.report.comparison.figures import overlays
from lipprof.report.formats import plural
from lipprof.report.live.pieces import Cutter, Drawing, cut
from lipprof.report.live.shelf import Snapshot
from lipprof.report.page import page_context
from lipprof.report.sections import sections

ROWS_PER_SIDE = 150  # of the table of tensors: it is sent whole whenever one number changed
SWITCHES = 25  # the reason of each is read from another part of the file, at every update
KEPT_PAGES = 16


@dataclass(frozen=True, slots=True)
class View:
    """What to show: HTML with a holder for every figure, and the figures.

    Attributes:
        html: its outermost elements have ids.
        drawing: the figures.
        revision: what the user zoomed stays while this does.
    """

    html: str
    drawing: Drawing = field(default_factory=Drawing)
    revision: str = ""


@dataclass(slots=True)
class _Page:
    """One state of a run: its text, and its figures as far as they were asked for."""

    html: str
    parts: dict[str, list[str]] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)


class Views:
    """Builds views, and keeps what the next one may need again."""

    def __init__(self) -> None:
        self._cutter = Cutter()
        self._pages: OrderedDict[Hashable, _Page] = OrderedDict()
        self._lock = Lock()

    def run(self, path: Path, version: Hashable, near: Collection[str]) -> View:
        """Show one run, as on its page; why not where it cannot be read.

        Args:
            path: the file.
            version: differs where the file may.
            near: ids of the figures that are wanted.

        Returns:
            The view.
        """
        with self._lock:
            page = self._pages.setdefault(version, _Page(""))
            self._pages.move_to_end(version)
            while len(self._pages) > KEPT_PAGES:
                self._pages.popitem(last=False)
        try:
            with page.lock:
                _complete(page, path, near)
        except RunFileError as error:
            return self.sentence(str(error))
        drawing = Drawing()
        for id_ in near:
            if id_ in page.parts:
                drawing.add(id_, page.parts[id_])
        return View(page.html, drawing, str(path))

    def comparison(self, runs: Sequence[Snapshot], by: By, near: Collection[str]) -> View:
        """Show several runs over each other."""
        tracks = [run.track for run in runs if run.track is not None]
        found = overlays(tracks, by)
        if not found:
            return self.sentence("Nothing was measured in these runs yet.")
        title = f"{plural(len(tracks), 'run')} by {by.value}"
        frames = [overlay.frame for overlay in found]
        text = html.part("overlays.html", frames, title=title)
        return View(text, self._cutter.overlays(found, near), by.value)

    def sentence(self, text: str) -> View:
        """Show a sentence in place of figures."""
        return View(html.part("sentence.html", [], text=text))


def _complete(page: _Page, path: Path, near: Collection[str]) -> None:
    """Fill in the text, and those figures that are missing.

    Raises:
        RunFileError: the file cannot be read.
    """  # noqa: DOC502 - raised by the run
    if page.html and set(near) <= page.parts.keys():
        return
    with open_run(path) as run:
        if not page.html:
            context = page_context(run, limit=ROWS_PER_SIDE, latest=SWITCHES)
            page.html, panels = html.part("run.html", **context), context["panels"]
        else:
            position = derived.latest(run)
            asked = [] if position is None else sections(run, position)
            panels = [panel for section in asked for panel in section.panels]
        for panel in panels:
            if panel.id in near and panel.id not in page.parts:
                page.parts[panel.id] = cut(panel.figure)
