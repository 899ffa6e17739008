"""The page's questions, in their order, each with the figures that answer it.

A figure of which nothing was recorded is left out, and a question without figures too: a run
without eigenpairs or with a single measurement gets a shorter page, not empty axes.  Figures are
drawn when they are asked for: a live page asks for those on the screen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import plotly.graph_objects as go

from lipprof.record import Run
from lipprof.report import derived, estimators
from lipprof.report.calibration import calibration_figure
from lipprof.report.figures import heatmaps, lipschitz, series
from lipprof.report.figures.theme import ROW_HEIGHT
from lipprof.report.formats import percent
from lipprof.report.sources import source_sentence, ways
from lipprof.report.superiority import judge, sentence, superiority_figure


@dataclass(frozen=True, eq=False)
class Panel:
    """One figure with its title and a sentence on how to read it.

    Attributes:
        draw: gives the figure; what it reads of the run must be open.
        height: of the figure, in pixels.
    """

    id: str
    title: str
    reading: str
    draw: Callable[[], go.Figure]
    height: int = 2 * ROW_HEIGHT

    @cached_property
    def figure(self) -> go.Figure:
        """The figure, drawn once."""
        return self.draw()


@dataclass(frozen=True, slots=True)
class Section:
    """A question and the figures that answer it; ``id`` is also its name in the navigation."""

    id: str
    question: str
    panels: list[Panel]


def sections(run: Run, position: int) -> list[Section]:
    """Build the questions after the first one, which the table of tensors answers.

    Args:
        run: the run, with a measurement that did not fail.
        position: of the measurement that the eigenvectors are shown of.

    Returns:
        Those that the recorded series can answer.
    """
    every = [
        _history(run),
        _stability(run),
        _curvature(run),
        _where(run, position),
        _regret(run),
        _trust(run),
    ]
    return [section for section in every if section.panels]


def _history(run: Run) -> Section:
    rows = heatmaps.largest(run.tensor_numel)
    shown, panels, height = "", [], heatmaps.height(rows.size)
    if rows.size < len(run.tensor_names):
        share = float(run.tensor_numel[rows].sum() / run.tensor_numel.sum())
        every = len(run.tensor_names)
        shown = f" (the {rows.size} largest of {every:,}, {percent(share)} of the parameters)"
    of = "measurement"
    if len(run) > heatmaps.MAX_COLUMNS:
        of += f" (of {len(run):,}, at most {heatmaps.MAX_COLUMNS}, the extremes kept)"
    if run["recommendation"].any():
        reading = (
            f"One row per {run.unit_kind}{shown}, one column per {of}: orange asks for "
            "first-order, blue allows second-order, an empty column failed. A row that flickers is "
            "a close call."
        )
        draw = partial(heatmaps.choice_figure, run)
        panels.append(Panel("recommendation", "Recommended optimizer", reading, draw, height))
    if run["assigned"].any():
        reading = (
            f"The same {run.unit_kind}s{shown}, as AMOS ran them after each measurement: a "
            "change of colour is a switch, a dot marks what was not recommended."
        )
        draw = partial(heatmaps.choice_figure, run, "assigned")
        panels.append(Panel("assigned", "What AMOS ran", reading, draw, height))
    if run["pair_assigned"].any():
        reading = (
            "One row per eigenpair, by its place among the eigenvalues: after the measurement blue "
            "was given the second-order step, orange was left to the base optimizer, grey had no "
            "answer."
        )
        title, height = "What was chosen in each eigenspace", heatmaps.height(len(run.pair_labels))
        draw = partial(heatmaps.pair_choice_figure, run)
        panels.append(Panel("pair_assigned", title, reading, draw, height))
    if _known(run, "tensor_lipschitz"):
        reading = (
            "What could be left to a first-order optimizer, of the parameters that have an answer "
            "(the headline counts those without one too). A level line is an answer to rely on."
        )
        draw = partial(series.share_figure, run)
        panels.append(Panel("share", "Share to offload", reading, draw, ROW_HEIGHT))
    return Section("history", "When did the answer change?", panels)


def _stability(run: Run) -> Section:
    panels = []
    if _known(run, "loss") or _known(run, "grad_norm"):
        reading = (
            "Of the measured batch: a spike in both, after the largest λ crossed 2/lr, is an "
            "instability."
        )
        draw = partial(series.training_figure, run)
        panels.append(Panel("training", "Loss and gradient norm", reading, draw))
    if _known(run, "eigenvalue"):
        reading = (
            "The strongest line is the most extreme pair. Bands are the residual: an eigenvalue "
            "lies within; hollow markers did not converge. Plain gradient descent, without "
            "momentum or preconditioning, diverges along directions with λ above 2/lr."
        )
        draw = partial(series.eigenvalues_figure, run)
        panels.append(Panel("eigenvalues", "Eigenvalues at both ends", reading, draw))
    if _known(run, "edge_ratio"):
        reading = (
            "The largest eigenvalue as the optimizer itself sees it (learning rate, momentum, "
            "preconditioner, weight decay), over the one at which its steps lose stability: above "
            "the dashed line the sharpest direction oscillates and grows. Tensors whose optimizer "
            "has no diagonal preconditioner are left out."
        )
        draw = partial(series.edge_figure, run)
        panels.append(Panel("edge", "Edge of stability", reading, draw, ROW_HEIGHT))
    if run.calibration:
        reading = (
            "Above, the learning rate over the given one as it grew from a small start; below, how "
            "many times the step just taken the loss would have allowed (x* of the cubic model "
            "along it). Growth ends where that falls to the dashed line."
        )
        draw = partial(calibration_figure, run)
        panels.append(Panel("calibration", "Calibration of the learning rate", reading, draw))
    return Section("stability", "Is training stable?", panels)


def _curvature(run: Run) -> Section:
    panels, height = [], ROW_HEIGHT * len(derived.extreme_pairs(run))
    if estimators.recorded(run):
        reading = (
            "L⁺ is the largest L over directions with λ > 0, L⁻ over those with λ ≤ 0; the higher, "
            "the shorter the step for which curvature can be trusted. An overlap far below 1 means "
            "that the direction itself turned. Hollow markers are bounds, and pairs that crossed "
            "another, cannot be told apart, or are new."
        )
        draw = partial(lipschitz.lipschitz_figure, run)
        panels.append(Panel("lipschitz", "How fast curvature changes", reading, draw))
    if len(estimators.recorded(run)) > 1:
        reading = "Independent estimates of one number. " + " ".join(
            estimators.agreement_sentences(run)
        )
        draw = partial(lipschitz.estimators_figure, run)
        panels.append(Panel("estimators", "L, estimated in several ways", reading, draw, height))
    if _known(run, "rotation"):
        reading = (
            "L_R is the turn of the eigenbasis over the distance travelled. Angles are the widest "
            "between the space that the pairs of one end span and that of the last measurement: "
            "90° means that one direction is entirely new."
        )
        draw = partial(lipschitz.rotation_figure, run)
        panels.append(Panel("rotation", "How fast the eigenbasis turns", reading, draw))
    return Section("curvature", "How does the surface bend?", panels)


def _where(run: Run, position: int) -> Section:
    panels, height = [], heatmaps.height(min(heatmaps.MASS_ROWS, len(run.tensor_names)))
    mass, moving = run.row("eigenvector_mass", position), run.row("lipschitz_mass", position)
    if np.isfinite(mass).any():
        title = f"Eigenvectors over {run.unit_kind}s at iteration {run['iteration'][position]:,}"
        reading = (
            f"The share of each eigenvector that lies in a {run.unit_kind}. A column sums to 100 % "
            f"over all {run.unit_kind}s; those with the largest share are shown, "
            f"{heatmaps.MASS_ROWS} at most."
        )
        draw = partial(heatmaps.mass_figure, run, mass)
        panels.append(Panel("mass", title, reading, draw, height))
    if np.isfinite(moving).any():
        title = f"What would move each eigenvalue, at iteration {run['iteration'][position]:,}"
        reading = (
            f"The share of each eigenvalue's gradient that lies in a {run.unit_kind}: moving it "
            "bends the eigenspace, whether or not the eigenvector lies in it."
        )
        draw = partial(heatmaps.mass_figure, run, moving)
        panels.append(Panel("lipschitz_mass", title, reading, draw, height))
    if _known(run, "block_largest"):
        reading = (
            "The largest eigenvalue of each diagonal block of the Hessian: how sharp the loss is "
            "when these parameters alone move. None exceeds that of the whole. A dot did not "
            f"converge; the {heatmaps.MAX_ROWS} sharpest blocks are shown at most."
        )
        draw = partial(heatmaps.block_figure, run)
        height = heatmaps.height(min(heatmaps.MAX_ROWS, len(run.block_names)))
        panels.append(Panel("blocks", "How sharp each block is", reading, draw, height))
    return Section("where", "Where does it bend?", panels)


def _regret(run: Run) -> Section:
    panels = []
    if _known(run, "regret"):
        reading = (
            "How much of the descent that ELMO's step guarantees the optimizer's own step gives "
            "away: 0 nothing, 1 all of it, above 1 it may ascend."
        )
        if _known(run, "concave_share"):
            share = percent(float(np.nanmedian(run["concave_share"])))
            reading += f" In the median {share} of that descent lies in directions with λ ≤ 0."
        draw, height = partial(heatmaps.regret_figure, run), heatmaps.height(len(run.pair_labels))
        panels.append(Panel("regret", "Regret per pair", reading, draw, height))
    if _known(run, "step_projection") or _known(run, "elmo_step"):
        reading = (
            "Beyond ELMO's step, cubic terms may undo the descent; below it, descent is left. "
            "Newton's step ignores them. Hollow markers did not converge, or step uphill."
        )
        draw = partial(series.steps_figure, run)
        height = ROW_HEIGHT * len(derived.extreme_pairs(run))
        panels.append(Panel("steps", "The step beside ELMO's and Newton's", reading, draw, height))
    foreseen = derived.foreseen_changes(run)
    if foreseen is not None:
        reading = (
            "Above, how the next step of either optimizer of AMOS would change the loss of the "
            "probe, by the cubic model along it; below, the step that AMOS took, as the model adds "
            "up for it and as it came out. Below zero the loss falls. One step says little: noise "
            "of the minibatch is in all of them."
        )
        draw = partial(series.descents_figure, run, foreseen)
        panels.append(Panel("descents", "Both optimizers' next step", reading, draw))
    found = judge(run)
    if found is not None:
        reading = f"Newton's γ/|λ| beside gradient descent's lr · γ, tried out. {sentence(found)}"
        draw = partial(superiority_figure, run)
        panels.append(Panel("superiority", "Newton's step against L", reading, draw, ROW_HEIGHT))
    return Section("regret", "How good is the optimizer's step?", panels)


def _trust(run: Run) -> Section:
    reading = (
        f"A pair below the dashed line (tolerance {run.settings.tol:g}) is converged, a cross is a "
        "measurement that failed. Bars are the wall time of each measurement."
    )
    if changed := source_sentence(ways(run)):
        reading += f" {changed}"
    panel = Panel("trust", "Residuals and cost", reading, partial(series.trust_figure, run))
    return Section("trust", "Can I trust these numbers?", [panel])


def _known(run: Run, name: str) -> bool:
    return bool(np.isfinite(run[name]).any())
