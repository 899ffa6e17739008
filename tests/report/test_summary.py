import h5py
import numpy as np
import pytest

from lipprof.advice import Choice
from lipprof.record import ENGINES, SOURCES, Measurement, RecordedTrial, Status, open_run
from lipprof.report.sources import source_sentence
from lipprof.report.summary import (
    advice_sentence,
    edge_sentence,
    sentences,
    stability_sentence,
    state_of,
    summarize,
    surface_sentence,
    trust_sentence,
)
from lipprof.report.trials import trials_sentence
from lipprof.settings import Settings

NAMES = ["a", "b", "c"]


def with_choices(write_run, *choices, **settings):
    rows = [
        Measurement.blank(pairs=5, tensors=3, iteration=i, recommendation=np.array(c, np.int8))
        for i, c in enumerate(choices)
    ]
    text = Settings(top=3, bottom=2, **settings).to_toml()
    run = write_run(names=NAMES, rows=rows, settings=text)
    return summarize(run, len(rows) - 1)


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ([1, 1, 1], "Use a first-order optimizer for every tensor: curvature changes too fast."),
        ([2, 2, 2], "Use a second-order optimizer for every tensor: none asks for a first-order "
         "one."),
        ([1, 2, 2], "Use a first-order optimizer for 33.3 % of the parameters (1 of 3 tensors), a "
         "second-order one for the rest."),
        ([1, 2, 0], "Use a first-order optimizer for 33.3 % of the parameters (1 of 3 tensors), a "
         "second-order one for 33.3 %. No answer yet for 1 tensor, 33.3 % of the parameters."),
        ([0, 0, 0], "No recommendation yet: it takes two measurements, and this run has "
         "1 successful measurement."),
    ],
)  # fmt: skip
def test_the_answer_in_a_sentence(write_run, choice, sentence):
    assert advice_sentence(with_choices(write_run, choice)) == sentence


@pytest.mark.parametrize(
    ("rule", "choice", "sentence"),
    [
        ("random(share=0.3)", [1, 2, 2],
         "Rule random(share=0.3) puts 33.3 % of the parameters (1 of 3 tensors) on the first-order "
         "side."),
        ("quantile", [1, 1, 1], "Use a first-order optimizer for every tensor."),
    ],
)  # fmt: skip
def test_a_rule_that_is_no_advice_or_no_threshold_says_so(write_run, rule, choice, sentence):
    assert advice_sentence(with_choices(write_run, choice, rule=rule)) == sentence


def test_no_answer_after_several_measurements(write_run):
    facts = with_choices(write_run, [0, 0, 0], [0, 0, 0], warmup=50)
    assert "No recommendation after 2 measurements" in advice_sentence(facts)
    assert "the end of the warm-up" in advice_sentence(facts)


def test_how_long_the_answer_has_held(write_run):
    assert stability_sentence(with_choices(write_run, [0, 0, 0])) is None
    held = with_choices(write_run, [2, 2, 2], [1, 2, 2], [1, 2, 2])
    assert stability_sentence(held) == "The answer is unchanged for 1 measurement."
    fresh = with_choices(write_run, [1, 2, 2], [1, 1, 2])
    assert "1 tensor got or changed theirs" in stability_sentence(fresh)


def test_sharpness_is_compared_with_the_limit(write_run):
    row = dict(eigenvalue=np.array([30.0, 2, 1, -1, -2]), converged=np.ones(5, np.int8))
    rows = [
        Measurement.blank(pairs=5, tensors=3, iteration=i, learning_rate=rate, **row)
        for i, rate in enumerate((0.1, 0.01))
    ]
    run = write_run(names=NAMES, rows=rows)
    assert "is 30, above 2/lr = 20," in surface_sentence(summarize(run, 0))
    assert "is 30, below 2/lr = 200," in surface_sentence(summarize(run, 1))


@pytest.mark.parametrize(
    ("engine", "error", "text"),
    [
        ("traced", 0.0, "products (traced) in"),
        ("differences", 1e-4, "by central differences of gradients with an error of 1.00e-04 in"),
        ("retained", 4e-3, "products (retained) with an error of 4.00e-03 in"),
    ],
)
def test_products_say_how_they_were_computed(write_run, engine, error, text):
    row = Measurement.blank(
        pairs=5, tensors=2, iteration=0, engine=ENGINES.index(engine), product_error=error
    )
    run = write_run(names=["a", "b"], rows=[row])
    assert text in trust_sentence(summarize(run, 0))


@pytest.mark.parametrize(("ratio", "where"), [(0.8, "within its edge"), (1.2, "beyond its edge")])
def test_the_edge_of_stability_is_told(write_run, ratio, where):
    row = Measurement.blank(pairs=5, tensors=2, iteration=0, edge_ratio=ratio)
    run = write_run(names=["a", "b"], rows=[row, row])
    assert where in edge_sentence(summarize(run, 0))
    assert edge_sentence(summarize(write_run(name="other.h5"), 0)) is None


def test_cost_is_a_share_of_the_run(write_run):
    run = write_run()
    run.close()
    with h5py.File(run.path, "r+") as file:
        file["run_seconds"][()] = 958.0
    with open_run(run.path) as run:
        facts = summarize(run, len(run) - 1)
        assert facts.cost_share == pytest.approx((19 * 2.5 + 0.4) / 958)
        assert trust_sentence(facts) == (
            "20 measurements, 1 did not converge and 1 failed; 2,280 Hessian-vector products "
            "(retained) in 47.9 s, 5 % of the run's time."
        )
        assert state_of(facts) == "finished"


def measured(iteration, source, engine="retained", reason=""):
    return Measurement.blank(
        pairs=5,
        tensors=2,
        iteration=iteration,
        source=SOURCES.index(source),
        engine=ENGINES.index(engine),
        status=Status.FAILED if reason or source == "hooks" else Status.CONVERGED,
        reason=reason,
    )


def ways_told(write_run, *rows):
    facts = summarize(write_run(names=["a", "b"], rows=list(rows)), None)
    sentence = source_sentence(facts.ways)
    assert (sentence in sentences(facts)) == (sentence is not None)
    return sentence


def test_one_source_is_told_once_by_the_header(write_run):
    failed = measured(2, "unknown", reason="out of memory")
    assert ways_told(write_run, measured(0, "replay"), failed, measured(4, "replay")) is None


def test_a_change_of_source_is_told_with_its_reason(write_run):
    told = ways_told(
        write_run,
        *(measured(i, "replay") for i in range(38)),
        measured(38, "unknown", reason="NoSecondDerivativeError: flash has none"),
        *(measured(i, "replay", "differences") for i in (39, 40)),
    )
    assert told == (
        "Measured by replay 38 of 40, central differences of the step's gradient 2 (from iteration "
        "39 on: NoSecondDerivativeError: flash has none)."
    )


def test_sources_that_come_and_go_are_told_by_iteration(write_run):
    """As in a run that was resumed with a closure for a while."""
    told = ways_told(
        write_run,
        measured(0, "replay"),
        *(measured(i, "closure") for i in (1, 2)),
        measured(3, "replay"),
        measured(4, "hooks", reason="ReplayError: no"),
    )
    assert told == (
        "Measured by replay 2 of 5, the loss closure 2 (iterations 1, 2), the optimizer's hooks "
        "alone 1 (iteration 4: ReplayError: no)."
    )


def trial(**fields):
    losses = dict(first_loss=2.5, second_loss=2.25, first_average=2.6, second_average=2.3)
    common = dict(iteration=80, num_gradients=40, seconds=2.0)
    sides = dict(incumbent=Choice.FIRST, winner=Choice.SECOND)
    return RecordedTrial(**(losses | common | sides | fields))


def test_trials_are_told_by_the_last_and_by_their_cost():
    assert trials_sentence([]) is None
    told = trials_sentence([trial(), trial(iteration=680, incumbent=Choice.SECOND)])
    assert told is not None
    assert told.startswith("2 trials of both optimizers, 80 gradients, 4 s; ")
    assert "in the last the second one stayed (iteration 680)" in told
    assert "went to 2.25 by the second and 2.5 by the first optimizer" in told
    assert "the second one took over" in (trials_sentence([trial()]) or "")
