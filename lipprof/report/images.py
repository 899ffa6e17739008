"""The page's figures as files of their own, by kaleido, which needs Chrome or Chromium."""

from pathlib import Path
from typing import Literal

import plotly.graph_objects as go

from lipprof.errors import ConfigError, MissingExtraError
from lipprof.record import Run
from lipprof.record.extras import require
from lipprof.report import derived
from lipprof.report.sections import sections

WIDTH = 900  # px
SCALE = 2  # pixels of a PNG per px


def write_images(run: Run, folder: Path, kind: Literal["png", "svg"]) -> list[Path]:
    """Write every figure of the page at the last measurement that did not fail.

    Args:
        run: the run.
        folder: exists.
        kind: of image.

    Returns:
        The files, named after the figures: ``eigenvalues.svg``.

    Raises:
        MissingExtraError: kaleido is not installed, or finds no browser.
        ConfigError: kaleido fails otherwise.
        RunFileError: no measurement succeeded.
    """
    require("kaleido", "images")
    figures = {
        panel.id: panel.figure
        for section in sections(run, derived.select(run))
        for panel in section.panels
    }
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.{kind}")
        _write(figure, paths[-1])
    return paths


def _write(figure: go.Figure, path: Path) -> None:
    figure.update_layout(paper_bgcolor="white", plot_bgcolor="white", font_color="#333a45")
    try:
        figure.write_image(path, width=WIDTH, scale=SCALE)
    except Exception as error:
        if "chrome" in f"{type(error).__name__} {error}".lower():
            raise MissingExtraError(
                "kaleido draws with Chrome or Chromium and found neither. Install one, or run "
                "`plotly_get_chrome`."
            ) from error
        raise ConfigError(f"Cannot draw {path.name}: {str(error).splitlines()[0]}") from error
