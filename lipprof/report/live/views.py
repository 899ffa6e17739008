"""What the live dashboard shows: a run, several runs over each other, or a sentence instead.

Text is filled into the templates of the page, which escape it; figures are those of the page.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lipprof.errors import RunFileError
from lipprof.record import open_run
from lipprof.report import html
from lipprof.report.comparison.compare import By
from lipprof.report.comparison.figures import overlays
from lipprof.report.formats import plural
from lipprof.report.live.pieces import Cutter, Drawing
from lipprof.report.live.shelf import Snapshot
from lipprof.report.page import page_context

ROWS_PER_SIDE = 150  # of the table of tensors: it is sent whole whenever one number changed


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


class Views:
    """Builds views, and keeps what the next one may need again."""

    def __init__(self) -> None:
        self._cutter = Cutter()

    def run(self, path: Path) -> View:
        """Show one run, as on its page; why not where it cannot be read."""
        try:
            with open_run(path) as run:
                context = page_context(run, limit=ROWS_PER_SIDE)
                drawing = self._cutter.panels(context["panels"])
                return View(html.part("run.html", **context), drawing, str(path))
        except RunFileError as error:
            return self.sentence(str(error))

    def comparison(self, runs: Sequence[Snapshot], by: By) -> View:
        """Show several runs over each other."""
        tracks = [run.track for run in runs if run.track is not None]
        found = overlays(tracks, by)
        if not found:
            return self.sentence("Nothing was measured in these runs yet.")
        title = f"{plural(len(tracks), 'run')} by {by.value}"
        frames = [overlay.frame for overlay in found]
        text = html.part("overlays.html", frames, title=title)
        return View(text, self._cutter.overlays(found), by.value)

    def sentence(self, text: str) -> View:
        """Show a sentence in place of figures."""
        return View(html.part("sentence.html", [], text=text))
