import numpy as np
import pytest

from lipprof.advice import Choice
from lipprof.errors import ConfigError
from lipprof.report import derived
from lipprof.report.recompute import differences, recompute


def test_the_runs_own_rule_gives_the_recorded_answer(write_run):
    run = write_run()
    answer = recompute(run)
    position = derived.select(run)
    np.testing.assert_array_equal(answer.choice, run["recommendation"][position])
    assert answer.iteration == run["iteration"][position]
    assert differences(answer, run["recommendation"][position]) == []


def test_a_constant_threshold_without_hysteresis_is_a_comparison(write_run):
    run = write_run()
    limit = float(np.nanmedian(run["tensor_lipschitz"][-1]))
    answer = recompute(run, rule="threshold", threshold=limit, hysteresis=1.0, dwell=1)
    expected = np.where(run["tensor_lipschitz"][-1] >= limit, Choice.FIRST, Choice.SECOND)
    np.testing.assert_array_equal(answer.choice, expected)

    recorded = run["recommendation"][-1]
    changed = differences(answer, recorded)
    assert {d.name for d in changed} == {
        name for name, a, b in zip(run.tensor_names, expected, recorded, strict=True) if a != b
    }
    assert [d.numel for d in changed] == sorted((d.numel for d in changed), reverse=True)


def test_one_measurement_has_no_answer(write_run):
    assert set(recompute(write_run(count=1)).choice) == {Choice.NONE}


def test_an_unknown_rule_is_refused(write_run):
    with pytest.raises(ConfigError, match="Unknown rule"):
        recompute(write_run(count=2), rule="vibes")
