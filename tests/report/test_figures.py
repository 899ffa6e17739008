import numpy as np
import pytest

from lipprof.record import Measurement, Status
from lipprof.report import derived
from lipprof.report.figures import heatmaps, labels, lipschitz, series, traces
from lipprof.report.notebook import Plots
from tests.report.conftest import BLOCKS, with_blocks


def trace(figure, name):
    return next(t for t in figure.data if t.name == labels.label(name))


def test_eigenvalues_are_drawn_as_recorded_and_hollow_where_unconverged(write_run):
    run = write_run()
    figure = series.eigenvalues_figure(run)
    for i, label in enumerate(run.pair_labels):
        np.testing.assert_array_equal(trace(figure, label).y, run["eigenvalue"][:, i])
    symbols = np.array(trace(figure, "bottom2").marker.symbol)
    (hollow,) = np.flatnonzero(symbols == "circle-open")
    assert run["status"][hollow] == Status.UNCONVERGED
    limit = trace(figure, series.LIMIT_NAME)
    np.testing.assert_allclose(limit.y, 2 / run["learning_rate"])


def test_a_limit_out_of_sight_is_said_not_drawn(write_run):
    row = dict(eigenvalue=np.array([3.0, 2, 1, -1, -2]), learning_rate=1e-3)
    run = write_run(rows=[Measurement.blank(pairs=5, tensors=39, iteration=0, **row)])
    figure = series.eigenvalues_figure(run)
    assert series.LIMIT_NAME not in [t.name for t in figure.data]
    assert figure.layout.annotations[-1].text.endswith("≥ 2.00e+03: above the plot")
    assert figure.layout.yaxis.range[1] == pytest.approx(4.5)


def test_bands_are_the_residual(write_run):
    run = write_run()
    band = series.eigenvalues_figure(run).data[0]
    known = np.isfinite(run["eigenvalue"][:, 0])
    upper, lower = np.split(np.asarray(band.y), 2)
    np.testing.assert_allclose(upper - lower[::-1], 2 * run["residual"][known, 0])


def test_lipschitz_by_sign_is_drawn(write_run):
    run = write_run()
    positive, negative = derived.lipschitz_by_sign(run)
    figure = lipschitz.lipschitz_figure(run)
    np.testing.assert_array_equal(trace(figure, "L⁺, over λ > 0").y, positive.values)
    np.testing.assert_array_equal(trace(figure, "L⁻, over λ ≤ 0").y, negative.values)


def test_failures_are_marked_with_their_reason(write_run):
    run = write_run()
    marks = trace(series.trust_figure(run), "failed")
    assert list(marks.x) == [700]
    assert "CUDA out of memory" in marks.text[0]


def test_choices_are_drawn_as_recorded_and_failures_left_empty(write_run):
    run = write_run()
    (heatmap,) = heatmaps.choice_figure(run).data
    failed = run["status"] == Status.FAILED
    np.testing.assert_array_equal(heatmap.z, np.where(failed, -1, run["recommendation"].T))
    words = {code: set(heatmap.text[heatmap.z == code]) for code in np.unique(heatmap.z)}
    assert words == {-1: {"failed"}, 0: {"none yet"}, 1: {"first-order"}, 2: {"second-order"}}
    assert heatmap.y[0] == "wte.weight", "the common module path is left out"


def test_many_tensors_are_limited_to_the_largest(write_run):
    run = write_run(layers=333, count=3)
    (heatmap,) = heatmaps.choice_figure(run).data
    assert len(heatmap.y) == len(set(heatmap.y)) == heatmaps.MAX_ROWS
    (mass,) = heatmaps.mass_figure(run, run["eigenvector_mass"][2]).data
    largest = np.sort(run["eigenvector_mass"][2].max(axis=0))[-heatmaps.MASS_ROWS :]
    np.testing.assert_allclose(np.sort(np.max(mass.z, axis=1)), largest)


def test_regret_is_clipped_for_colour_and_told_in_full(write_run):
    row = dict(regret=np.array([-0.5, 0.2, 1.5, 40.0, np.nan]))
    run = write_run(rows=[Measurement.blank(pairs=5, tensors=39, iteration=0, **row)])
    (heatmap,) = heatmaps.regret_figure(run).data
    np.testing.assert_array_equal(np.ravel(heatmap.z), [0, 0.2, 1.5, 2, np.nan])
    np.testing.assert_array_equal(np.ravel(heatmap.customdata), row["regret"])


def test_labels_are_safe_and_distinct():
    texts = ["<b>x</b>", "a" * 99, "a" * 98, "$x$", "1", "1"]
    safe = labels.labels(texts, 20)
    assert safe[0] == "&lt;b&gt;x&lt;/b&gt;"
    assert safe[3] == "&#36;x&#36;"
    assert len(set(safe)) == len(texts)


def test_long_series_are_drawn_with_their_extremes():
    values = np.sin(np.arange(5000.0))
    values[1234] = 50
    spiked = derived.Series(values, values < 40)
    line, marks = traces.draw_line(np.arange(5000) * 10, spiked, name="x", colour="#000000")
    assert len(line["x"]) == len(line["y"]) <= traces.POINTS
    assert line["y"][list(line["x"]).index(12340)] == 50
    assert (line["mode"], marks["mode"]) == ("lines", "markers"), "no element per certain point"
    assert (list(marks["x"]), list(marks["y"])) == ([12340], [50])
    assert marks["marker"]["symbol"] == ["circle-open"]
    assert not marks["showlegend"]


def test_of_many_uncertain_points_the_extremes_are_marked():
    values = np.cos(np.arange(5000.0) ** 2)
    values[[17, 4321]] = 9, -9
    never = derived.Series(values, np.zeros(5000, bool))
    line, marks = traces.draw_line(np.arange(5000), never, name="x", colour="#000000")
    assert len(marks["x"]) <= traces.MARKED
    assert {17, 4321} < set(marks["x"]) < set(range(5000))
    assert set(marks["marker"]["symbol"]) == {"circle-open"}
    np.testing.assert_array_equal(marks["y"], values[marks["x"]])


def test_maps_of_long_runs_keep_the_measurements_that_differ(write_run, monkeypatch):
    monkeypatch.setattr(heatmaps, "MAX_COLUMNS", 8)
    run = write_run()
    share = derived.first_order_share(run)
    figure = heatmaps.choice_figure(run)
    assert len(figure.data[0].x) <= 8
    shown = {int(i) for i in figure.data[0].x}
    for extreme in (np.nanargmin(share), np.nanargmax(share)):
        assert share[extreme] in share[[int(i) // 100 for i in shown]]
    worst = heatmaps.regret_figure(run).data[0]
    assert worst.z.shape == (5, len(worst.x))
    assert np.nanmax(worst.customdata) == np.nanmax(run["regret"])


def test_blocks_are_drawn_by_their_decade_and_dotted_where_unconverged(write_run):
    run = write_run(rows=with_blocks(3), **BLOCKS)
    heatmap, dots = heatmaps.block_figure(run).data
    assert list(heatmap.y) == run.block_names
    expected = np.where(run["block_largest"] > 0, run["block_largest"], np.nan).T
    np.testing.assert_allclose(10 ** np.asarray(heatmap.z), expected)
    assert (list(dots.x), list(dots.y)) == (["100"], ["b7"])
    np.testing.assert_array_equal(np.asarray(heatmap.customdata)[7, 2], [32, 1e-3, -3.2, 2e-3])
    assert len(Plots(run).blocks().data) == 2


def test_maps_of_the_same_tensors_have_the_same_axes(write_run):
    run = write_run(amos=True)
    there, here = heatmaps.choice_figure(run), heatmaps.choice_figure(run, "assigned")
    assert len(here.data) == 2, "it has dots"
    assert there.layout.xaxis == here.layout.xaxis
    assert there.layout.yaxis == here.layout.yaxis
    assert there.layout.xaxis.autorangeoptions.maxallowed == len(run) - 0.5
