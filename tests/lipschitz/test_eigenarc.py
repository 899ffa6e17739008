"""EigenARC against Alg. 3 written over plain numbers, and on cubics whose L is known."""

import copy
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import lipprof
from lipprof.curvature import DisplacedLoss, ParameterView, ProbeLoss
from lipprof.errors import ConfigError, NonfiniteError, ShapeError
from lipprof.lipschitz import EigenARC, EigenArcStatus, elmo_step, pessimistic_model
from tests.models import problem

NAN, INF = math.nan, math.inf
positive = st.floats(1e-2, 1e2)
curvatures = st.floats(-10, 10)
pairs = st.tuples(positive, curvatures, positive)
shares = st.floats(1e-4, 1e4)


def vector(numbers):
    return torch.tensor(list(numbers), dtype=torch.float64)


class Cubic:
    """f(x) = f₀ + Σ −γx + λx²/2 + c|x|³/6, counting its evaluations; its exact L is c."""

    def __init__(self, *pairs, loss=0.0, scale=1.0):
        self.pairs = pairs
        self.slope, self.curvature, self.third = zip(*pairs, strict=True)
        self.scale = scale
        self.loss = loss
        self.points = []

    def __call__(self, x):
        self.points.append(x.tolist())
        return self.loss + self.scale * self.model(x.tolist(), self.third)

    def model(self, x, lipschitz):
        terms = zip(x, self.slope, self.curvature, lipschitz, strict=True)
        return math.fsum(-g * y + h * y**2 / 2 + c * abs(y) ** 3 / 6 for y, g, h, c in terms)

    def elmo(self, lipschitz):
        numbers = zip(self.slope, self.curvature, lipschitz, strict=True)
        return [
            (math.hypot(h, math.sqrt(2 * c * g)) - h) / c
            if h < 0
            else 2 * g / (h + math.hypot(h, math.sqrt(2 * c * g)))
            for g, h, c in numbers
        ]

    def ratio(self, lipschitz):
        x = self.elmo(lipschitz)
        return self.model(x, self.third) / self.model(x, lipschitz)

    def measure(self, estimator, **keywords):
        return estimator.update(
            self,
            loss=self.loss,
            slope=self.scale * vector(self.slope),
            curvature=self.scale * vector(self.curvature),
            **{"rounding": 1e-16, **keywords},
        )


def algorithm_3(cubic, lipschitz, *, max_raises=11):
    """Case, number of raises and L; every ρ that a threshold was compared with."""
    seen = [cubic.ratio(lipschitz)]
    if seen[0] > 0.9:
        return EigenArcStatus.LOWERED, 0, [c / 2 for c in lipschitz], seen
    if seen[0] >= 0.1:
        return EigenArcStatus.KEPT, 0, lipschitz, seen
    start, raises = list(lipschitz), 0
    while seen[-1] < 0.1:
        if raises == max_raises:
            break
        raises += 1
        lipschitz = [2 * c for c in lipschitz]
        seen.append(cubic.ratio(lipschitz))
    if seen[-1] < 0.1:  # in vain: every pair by itself, from where it was
        for i, pair in enumerate(cubic.pairs):
            alone, lipschitz[i] = Cubic(pair), start[i]
            seen.append(alone.ratio([lipschitz[i]]))
            while seen[-1] < 0.1 and lipschitz[i] < 2**max_raises * start[i]:
                lipschitz[i] *= 2
                seen.append(alone.ratio([lipschitz[i]]))
        return EigenArcStatus.GAVE_UP, raises, lipschitz, seen
    for i in range(len(lipschitz)):
        while lipschitz[i] > start[i]:
            lipschitz[i] /= 2
            seen.append(cubic.ratio(lipschitz))
            if seen[-1] < 0.1:
                lipschitz[i] *= 2
                break
    return EigenArcStatus.RAISED, raises, lipschitz, seen


@given(spaces=st.lists(pairs, min_size=1, max_size=4), initial=shares, loss=st.floats(-10, 10))
def test_follows_algorithm_3(spaces, initial, loss):
    cubic = Cubic(*spaces)
    status, raises, lipschitz, seen = algorithm_3(cubic, [initial] * len(spaces))
    assume(all(min(abs(ratio - 0.1), abs(ratio - 0.9)) > 1e-6 for ratio in seen))
    result = cubic.measure(EigenARC(initial=initial))
    assert (result.status, result.raises) == (status, raises)
    assert result.lipschitz.tolist() == pytest.approx(lipschitz, rel=1e-12)
    assert result.ratio == pytest.approx(seen[0], rel=1e-6, abs=1e-9)
    assert result.tested.all()


@given(spaces=st.lists(pairs, min_size=1, max_size=4), initial=shares)
def test_evaluations_are_counted_and_never_repeated(spaces, initial):
    cubic = Cubic(*spaces)
    result = cubic.measure(EigenARC(initial=initial))
    assert result.evaluations == len(cubic.points) == len({tuple(x) for x in cubic.points})
    assert result.evaluations <= 1 + result.raises + (result.raises + 1) * len(spaces)
    if len(spaces) == 1:
        assert result.evaluations == 1 + result.raises


@settings(max_examples=20)
@given(slope=positive, third=positive, too_large=st.floats(1, 1e6))
def test_without_curvature_a_large_l_ends_within_its_factors(slope, third, too_large):
    """For λ = 0, ρ = (3 − c/L)/2: lowered while above 0.9, hence to c/2.4 ≤ L ≤ c/1.2."""
    cubic, estimator = Cubic((slope, 0.0, third)), EigenARC(initial=too_large * third)
    results = [cubic.measure(estimator) for _ in range(30)]
    assert {r.status for r in results[:-1]} <= {EigenArcStatus.LOWERED, EigenArcStatus.KEPT}
    assert results[-1].status is EigenArcStatus.KEPT
    assert third / 2.4 * 0.999 <= results[-1].lipschitz.item() <= third / 1.2 * 1.001


@given(slope=positive, third=positive, too_small=st.floats(1e-3, 0.3))
def test_without_curvature_a_small_l_ends_within_its_factors(slope, third, too_small):
    """Likewise raised while ρ < 0.1, hence to c/2.8 ≤ L < c/1.4, in one measurement."""
    result = Cubic((slope, 0.0, third)).measure(EigenARC(initial=too_small * third))
    assert result.status is EigenArcStatus.RAISED
    assert third / 2.8 * 0.999 <= result.lipschitz.item() <= third / 1.4 * 1.001


@given(slope=positive, curvature=curvatures, third=positive)
def test_the_exact_l_is_an_exact_model(slope, curvature, third):
    result = Cubic((slope, curvature, third)).measure(EigenARC(initial=third))
    assert result.ratio == pytest.approx(1, rel=1e-6)
    assert result.status is EigenArcStatus.LOWERED


def test_only_the_pair_to_blame_stays_raised():
    cubic = Cubic((1.0, 0.0, 1e3), (1.0, 5.0, 1e-3), (1.0, -0.1, 1.0))
    result = cubic.measure(EigenARC())
    assert result.status is EigenArcStatus.RAISED
    assert result.lipschitz[0] > 100
    assert result.lipschitz[1:].tolist() == [1.0, 1.0]
    assert [outcome.name for outcome in result.outcomes] == ["RAISED", "KEPT", "KEPT"]


@given(
    spaces=st.lists(pairs, min_size=1, max_size=3),
    initial=shares,
    exponent=st.integers(-60, 60),
)
def test_scales_as_the_loss(spaces, initial, exponent):
    scale = 2.0**exponent
    plain = Cubic(*spaces).measure(EigenARC(initial=initial))
    scaled = Cubic(*spaces, scale=scale).measure(EigenARC(initial=scale * initial))
    assert scaled.status is plain.status
    assert scaled.evaluations == plain.evaluations
    assert scaled.lipschitz.tolist() == pytest.approx((scale * plain.lipschitz).tolist(), rel=1e-12)


@given(spaces=st.lists(pairs, min_size=2, max_size=4), initial=shares, seed=st.randoms())
def test_the_case_and_the_raises_do_not_depend_on_the_order(spaces, initial, seed):
    shuffled = list(spaces)
    seed.shuffle(shuffled)
    assume(min(abs(Cubic(*spaces).ratio([initial] * len(spaces)) - x) for x in (0.1, 0.9)) > 1e-6)
    one, other = (Cubic(*s).measure(EigenARC(initial=initial)) for s in (spaces, shuffled))
    assert (one.status, one.raises) == (other.status, other.raises)
    assert one.ratio == pytest.approx(other.ratio, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("initial", [1e-3, 1e3])
def test_the_loss_of_a_network_falls_as_the_estimate_says(initial):
    """Measured again and again at one θ; judged by a copy that makes the step."""
    p = problem("mlp", torch.float64)
    p.model.eval()
    loss = ProbeLoss(p.model, p.loss)
    view = ParameterView.of(p.model)
    pairs = lipprof.spectrum(p.model, p.loss, top=1, bottom=1, tol=1e-6)
    gradient = torch.cat([
        g.flatten() for g in torch.autograd.grad(p.loss(p.model), p.model.parameters())
    ])
    projection = pairs.vectors @ gradient
    vectors = -torch.sign(projection)[:, None] * pairs.vectors
    estimator, along = EigenARC(initial=initial), DisplacedLoss(loss, view)
    for _ in range(16):
        result = estimator.update(
            lambda x: along(x @ vectors),
            loss=along(torch.zeros(view.n)),
            slope=projection.abs(),
            curvature=pairs.values,
            rounding=along.view.rounding,
        )
    assert result.status is EigenArcStatus.KEPT
    model = {"slope": projection.abs(), "curvature": pairs.values, "lipschitz": result.lipschitz}
    x = elmo_step(**model)
    moved = copy.deepcopy(p.model)
    flat = nn.utils.parameters_to_vector(moved.parameters()).detach() + x @ vectors
    nn.utils.vector_to_parameters(flat, moved.parameters())
    descent = (p.loss(p.model) - p.loss(moved)).item()
    ratio = descent / -pessimistic_model(x, **model).sum().item()
    assert 0.1 <= ratio <= 0.9
    assert ratio == pytest.approx(result.ratio, rel=1e-6)


def test_measurements_go_on_from_each_other():
    cubic, estimator = Cubic((1.0, 0.0, 1e3)), EigenARC()
    first = cubic.measure(estimator)
    second = cubic.measure(estimator)
    assert first.status is EigenArcStatus.RAISED
    assert second.status is EigenArcStatus.KEPT
    assert torch.equal(first.lipschitz, second.lipschitz)


def test_pairs_that_did_not_converge_are_left_out_and_come_back():
    estimator = EigenARC(initial=8.0)
    spoilt = Cubic((1.0, NAN, 1.0), (NAN, 1.0, 1.0), (1.0, 0.0, 1.0), (-1.0, 1.0, 1.0))
    spoilt.model = lambda x, _: -x[2] + abs(x[2]) ** 3 / 6
    result = spoilt.measure(estimator)
    assert result.lipschitz[[0, 1, 3]].isnan().all()
    assert result.lipschitz[2] == 4.0
    assert result.tested.tolist() == [False, False, True, False]
    assert [point[:2] + point[3:] for point in spoilt.points] == [[0.0, 0.0, 0.0]]
    whole = Cubic(*[(1.0, 0.0, 1e-9)] * 4).measure(estimator)
    assert whole.lipschitz.tolist() == [4.0, 4.0, 2.0, 4.0]


def test_a_pair_without_slope_keeps_its_l_unless_its_curvature_is_negative():
    cubic = Cubic((0.0, 2.0, 1.0), (0.0, 0.0, 1.0), (0.0, -1.0, 1.0), (1.0, 0.0, 1.0))
    result = cubic.measure(EigenARC(initial=64.0))
    assert result.status is EigenArcStatus.LOWERED
    assert result.tested.tolist() == [False, False, True, True]
    assert result.lipschitz.tolist() == [64.0, 64.0, 32.0, 32.0]


def test_the_others_are_not_raised_either():
    cubic = Cubic((0.0, 2.0, 1.0), (1.0, 0.0, 1e3))
    assert cubic.measure(EigenARC()).lipschitz[0] == 1.0


@pytest.mark.parametrize("pair", [(0.0, 1.0, 1.0), (0.0, 0.0, 1.0), (NAN, 1.0, 1.0)])
def test_nothing_to_do(pair):
    cubic = Cubic(pair)
    result = cubic.measure(EigenARC())
    assert result.status is EigenArcStatus.IDLE
    assert math.isnan(result.ratio)
    assert result.evaluations == len(cubic.points) == 0


@pytest.mark.parametrize("wrong", [NAN, INF, -INF])
def test_a_loss_that_is_not_finite_refuses_the_step(wrong):
    losses = iter([wrong, wrong, -100.0])
    result = EigenARC().update(
        lambda _: next(losses), loss=0.0, slope=vector([1.0]), curvature=vector([0.0])
    )
    assert result.ratio == -INF
    assert (result.status, result.raises) == (EigenArcStatus.RAISED, 2)
    assert result.lipschitz.item() == 4.0


def test_gives_up_where_every_step_rises():
    rising = Cubic((1.0, 1.0, 1.0), (2.0, -1.0, 1.0))
    rising.model = lambda x, _: sum(x)
    result = rising.measure(EigenARC(max_raises=5))
    assert (result.status, result.raises) == (EigenArcStatus.GAVE_UP, 5)
    assert result.evaluations == 6 + 2 * 6
    assert result.lipschitz.tolist() == [32.0, 32.0]
    assert result.outcomes == (EigenArcStatus.GAVE_UP,) * 2


STEEP = (1.0, 0.0, 1e12)  # takes more than eleven raises from L = 1
EASY = (1.0, 1e9, 1.0)  # its step is Newton's under any L of these tests, and too short to count
BOTH = (EigenArcStatus.KEPT, EigenArcStatus.GAVE_UP)


def test_raises_in_vain_stay_with_the_pair_to_blame():
    result = Cubic(EASY, STEEP).measure(EigenARC())
    assert (result.status, result.raises) == (EigenArcStatus.GAVE_UP, 11)
    assert result.lipschitz.tolist() == [1.0, 2.0**11]
    assert result.outcomes == BOTH


def test_raises_in_vain_are_as_many_as_each_pair_needs():
    result = Cubic((1.0, 0.0, 50.0), STEEP, EASY, (0.0, 2.0, 1.0)).measure(EigenARC())
    assert result.lipschitz.tolist() == [32.0, 2.0**11, 1.0, 1.0]
    told = [outcome.name for outcome in result.outcomes]
    assert told == ["RAISED", "GAVE_UP", "KEPT", "IDLE"]


def test_a_pair_to_blame_is_found_by_measurements_to_come():
    cubic, estimator = Cubic(EASY, STEEP), EigenARC()
    results = [cubic.measure(estimator) for _ in range(4)]
    assert [r.status.name for r in results] == ["GAVE_UP", "GAVE_UP", "GAVE_UP", "RAISED"]
    assert 1e12 / 2.8 <= results[-1].lipschitz[1] <= 1e12 / 1.4
    assert results[-1].lipschitz[0] == 1.0


def test_l_does_not_run_away_where_a_pair_is_new_again_and_again():
    cubic, estimator = Cubic(EASY, STEEP), EigenARC()
    for _ in range(20):
        estimator.follow(torch.tensor([0, -1]))
        result = cubic.measure(estimator)
    assert result.lipschitz[0] <= 1.0
    assert 1e12 / 2.8 <= result.lipschitz[1] <= 1e12 / 1.2


def test_only_a_step_along_both_pairs_fails():
    """What no pair shows by itself is no pair's L."""
    cubic = Cubic(EASY, (1.0, 1.0, 1.0))
    cubic.model = lambda x, lipschitz: 1.0 if all(x) else Cubic.model(cubic, x, lipschitz)
    result = cubic.measure(EigenARC())
    assert result.status is EigenArcStatus.GAVE_UP
    assert result.outcomes == (EigenArcStatus.KEPT, EigenArcStatus.KEPT)
    assert result.lipschitz.tolist() == [1.0, 1.0]


def test_an_infinite_step_is_refused_unseen():
    cubic, estimator = Cubic((1.0, -1e200, 1.0)), EigenARC(initial=1e-150, max_raises=3)
    result = cubic.measure(estimator)
    assert result.status is EigenArcStatus.GAVE_UP
    assert result.evaluations == len(cubic.points) == 0


def test_rounding_is_not_mistaken_for_a_verdict():
    """f = 1000 in float32 has a grain of 6e-5; a step that promises 7e-7 shows nothing."""
    estimator = EigenARC()

    def rounded(x):
        return float(torch.tensor(1000.0 - 1e-6 * x.item(), dtype=torch.float32))

    result = estimator.update(
        rounded, loss=1000.0, slope=torch.tensor([1e-6]), curvature=torch.tensor([1e-6])
    )
    assert result.status is EigenArcStatus.UNRESOLVED
    assert result.lipschitz.item() == 1.0
    assert result.evaluations == 1


def test_raising_ends_where_rounding_begins():
    """Each raise shortens the step: the loss rises by less and less, and then by noise."""
    result = EigenARC().update(
        lambda x: 1.0 + 0.05 * x.item(),
        loss=1.0,
        slope=vector([1.0]),
        curvature=vector([0.0]),
        rounding=1e-2,
    )
    assert result.status is EigenArcStatus.UNRESOLVED
    assert 1 <= result.raises < 11
    assert result.lipschitz.item() == 2.0**result.raises


def test_l_does_not_sink_below_what_the_loss_can_show():
    """Of a quadratic ρ → 1 for every L; ε · 3λ²/γ = 3e-3 · 4 is the least that counts."""
    cubic, estimator = Cubic((1.0, 2.0, 0.0)), EigenARC()
    for _ in range(40):
        result = cubic.measure(estimator, rounding=1e-3)
    assert 0.012 <= result.lipschitz.item() < 0.024
    assert result.status is EigenArcStatus.LOWERED


@pytest.mark.parametrize(("initial", "loss"), [(1e-148, -1.0), (1e148, NAN)])
def test_l_stays_a_number_whatever_is_said_again_and_again(initial, loss):
    estimator = EigenARC(initial=initial)
    for _ in range(20):
        result = estimator.update(
            lambda x: loss * x.item(), loss=0.0, slope=vector([1.0]), curvature=vector([0.0])
        )
    assert 1e-150 <= result.lipschitz.item() <= 1e150
    back = Cubic((1.0, 0.0, 1.0)).measure(estimator)
    assert back.status is (EigenArcStatus.GAVE_UP if loss == -1.0 else EigenArcStatus.LOWERED)


def test_float32_inputs_are_enough():
    result = EigenARC().update(
        lambda x: -x.sum().item(), loss=0.0, slope=torch.ones(2), curvature=torch.zeros(2)
    )
    assert result.lipschitz.dtype == torch.float64
    assert result.status is EigenArcStatus.LOWERED


def test_follow_moves_l_with_its_pair_and_new_ones_inherit_that_of_their_place():
    estimator = EigenARC()
    Cubic((1.0, 0.0, 1e3), (1.0, 0.0, 1e-3)).measure(estimator)
    estimator.follow(torch.tensor([1, -1]))
    (start,) = estimator.state_dict().values()
    assert start.tolist() == [1.0, 1.0]
    Cubic((1.0, 0.0, 1e3), (1.0, 0.0, 1e-3)).measure(estimator)
    estimator.follow(torch.tensor([-1, 0]))
    (start,) = estimator.state_dict().values()
    assert start[0] > 100
    assert start[0] == start[1]


def test_follow_before_the_first_measurement_changes_nothing():
    estimator = EigenARC()
    estimator.follow(torch.tensor([0, -1]))
    assert Cubic((1.0, 0.0, 1.0)).measure(estimator).status is EigenArcStatus.LOWERED


def test_state_dict_is_a_snapshot_that_goes_on_exactly():
    cubic, estimator = Cubic((1.0, 0.0, 1e3), (1.0, 0.0, 10.0)), EigenARC()
    cubic.measure(estimator)
    state, resumed = estimator.state_dict(), EigenARC()
    expected = cubic.measure(estimator).lipschitz
    resumed.load_state_dict(state)
    assert torch.equal(cubic.measure(resumed).lipschitz, expected)


def test_another_number_of_pairs_needs_a_matching():
    estimator = EigenARC()
    Cubic((1.0, 0.0, 1.0)).measure(estimator)
    with pytest.raises(ShapeError, match=r"2 pairs after 1.*follow"):
        Cubic(*[(1.0, 0.0, 1.0)] * 2).measure(estimator)


def test_a_loss_that_is_not_finite_itself_is_an_error():
    with pytest.raises(NonfiniteError, match="nan"):
        EigenARC().update(lambda _: 0.0, loss=NAN, slope=vector([1]), curvature=vector([1]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"eta1": 0.0},
        {"eta1": 0.95},
        {"eta2": 1.0},
        {"gamma1": 1.0},
        {"gamma2": 2.0},
        {"initial": 0.0},
        {"initial": NAN},
        {"max_raises": 0},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        EigenARC(**wrong)
