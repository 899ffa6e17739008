"""The drift estimator against line 5 of Alg. 2 written as a loop over plain numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipprof.lipschitz import DriftEstimator
from lipprof.lipschitz.drift import MEDIAN_WINDOW

alphas = st.floats(0, 0.999)
steps = st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
NAN = math.nan


def fed(*updates, **options):
    """An estimator after updates of (change, change, ..., distance)."""
    estimator = DriftEstimator(**options)
    for *change, distance in updates:
        estimator.update(torch.tensor(change, dtype=torch.float64), distance)
    return estimator


def algorithm_2(changes, distances, *, alpha, epsilon, bias_correction):
    average = 0.0
    for change, distance in zip(changes, distances, strict=True):
        average = alpha * average + (1 - alpha) * abs(change) / (epsilon + distance)
    return average / (1 - alpha ** len(distances)) if bias_correction else average


@given(
    updates=st.lists(steps, min_size=1, max_size=8),
    alpha=alphas,
    epsilon=st.floats(1e-12, 1),
    bias_correction=st.booleans(),
)
def test_follows_algorithm_2(updates, alpha, epsilon, bias_correction):
    options = {"alpha": alpha, "epsilon": epsilon, "bias_correction": bias_correction}
    first, second, distances = zip(*updates, strict=True)
    expected = [algorithm_2(changes, distances, **options) for changes in (first, second)]
    assert fed(*updates, **options).lipschitz().tolist() == pytest.approx(expected, rel=1e-9)


@given(
    drift=st.floats(1e-3, 1e3), distances=st.lists(st.floats(1e-2, 1e2), min_size=1), alpha=alphas
)
def test_a_constant_drift_is_estimated_exactly(drift, distances, alpha):
    updates = [(drift * distance, distance) for distance in distances]
    assert fed(*updates, alpha=alpha).lipschitz().item() == pytest.approx(drift, rel=1e-9)


@given(updates=st.lists(steps, min_size=1, max_size=5), alpha=alphas)
def test_loss_times_c_and_parameters_over_s_scale_by_c_s3(updates, alpha):
    c, s = 8.0, 0.25
    scaled = [(c * s**2 * first, c * s**2 * second, d / s) for first, second, d in updates]
    expected = [c * s**3 * number for number in fed(*updates, alpha=alpha).lipschitz().tolist()]
    found = fed(*scaled, alpha=alpha).lipschitz().tolist()
    assert found == pytest.approx(expected, rel=1e-7)


def test_without_the_correction_the_start_is_biased_low():
    estimator = fed((1.0, 1.0), alpha=0.9, bias_correction=False)
    assert estimator.lipschitz().item() == pytest.approx(0.1)


@pytest.mark.parametrize("distance", [0.0, NAN])
def test_without_movement_nothing_is_learnt(distance):
    assert fed((5.0, distance)).lipschitz() is None
    with_pause = fed((1.0, 1.0), (5.0, distance), (3.0, 2.0))
    assert torch.equal(with_pause.lipschitz(), fed((1.0, 1.0), (3.0, 2.0)).lipschitz())


def test_entries_without_a_change_stay_as_they_were():
    estimator = fed((1.0, 1.0, NAN, 1.0), (2.0, NAN, NAN, 1.0))
    lipschitz = estimator.lipschitz()
    assert lipschitz[0] == fed((1.0, 1.0), (2.0, 1.0)).lipschitz()
    assert lipschitz[1] == fed((1.0, 1.0)).lipschitz()
    assert lipschitz[2].isnan()


def test_follow_moves_the_averages_with_their_pairs():
    estimator = fed((1.0, 2.0, 1.0), (3.0, 4.0, 1.0))
    first, second = estimator.lipschitz().tolist()
    estimator.follow(torch.tensor([1, -1, 0]))
    followed = estimator.lipschitz()
    assert followed[[0, 2]].tolist() == [second, first]
    assert followed[1].isnan()
    estimator.update(torch.tensor([NAN, 7.0, NAN], dtype=torch.float64), 1.0)
    assert estimator.lipschitz().tolist() == pytest.approx([second, 7.0, first])


def test_follow_before_the_first_update_changes_nothing():
    estimator = DriftEstimator()
    estimator.follow(torch.tensor([0, 1]))
    assert estimator.lipschitz() is None


STEADY = [(1.0, 1.0)] * 3


@pytest.mark.parametrize(("floor", "distance_used"), [(0.0, 0.01), (0.1, 0.1)])
def test_a_short_distance_counts_as_the_floor(floor, distance_used):
    estimator = fed(*STEADY, (1.0, 0.01), alpha=0.0, distance_floor=floor)
    assert estimator.lipschitz().item() == pytest.approx(1 / distance_used)
    assert estimator.last_distance_ratio == 0.01


def test_distances_below_the_floor_do_not_lower_it():
    estimator = fed(*STEADY, *[(1.0, 0.01)] * 9, alpha=0.0, distance_floor=0.1)
    assert estimator.lipschitz().item() == pytest.approx(10)
    assert estimator.last_distance_ratio == 0.01


def test_state_dict_goes_on_exactly():
    options = {"alpha": 0.8, "distance_floor": 0.5}
    updates = [(1.0, 2.0, 1.0), (2.0, NAN, 4.0), (3.0, 1.0, 0.1), (5.0, 2.0, 2.0)]
    whole = fed(*updates, **options)
    resumed = DriftEstimator(**options)
    resumed.load_state_dict(fed(*updates[:2], **options).state_dict())
    for *change, distance in updates[2:]:
        resumed.update(torch.tensor(change, dtype=torch.float64), distance)
    assert torch.equal(resumed.lipschitz(), whole.lipschitz())
    assert resumed.last_distance_ratio == whole.last_distance_ratio


def test_a_state_dict_is_a_snapshot():
    estimator = fed((1.0, 1.0))
    state = estimator.state_dict()
    estimator.update(torch.tensor([9.0], dtype=torch.float64), 1.0)
    restored = DriftEstimator()
    restored.load_state_dict(state)
    assert torch.equal(restored.lipschitz(), fed((1.0, 1.0)).lipschitz())


def test_the_floor_follows_a_schedule_and_the_memory_is_bounded():
    """Ever smaller distances, never by half at once, end far under the floor of the first ones."""
    distances = [0.98**t for t in range(4 * MEDIAN_WINDOW)]
    estimator = fed(*[(distance, distance) for distance in distances], distance_floor=0.1)
    assert estimator.lipschitz().item() == pytest.approx(1)
    assert estimator.last_distance_ratio == pytest.approx(0.98 ** (MEDIAN_WINDOW // 2), rel=0.03)
    assert len(estimator.state_dict()["distances"]) == MEDIAN_WINDOW


def test_a_longer_history_than_the_window_can_be_loaded():
    state = fed((1.0, 1.0)).state_dict() | {"distances": [100.0] * 9 + [1.0] * MEDIAN_WINDOW}
    estimator = DriftEstimator()
    estimator.load_state_dict(state)
    estimator.update(torch.tensor([1.0], dtype=torch.float64), 0.5)
    assert estimator.last_distance_ratio == 0.5
