"""What FOSI and ELMO choose for eigenpairs, as the run file has it.

The loss is Σ fᵢ(θᵢ): its eigenvectors are the axes, so λ, L and γ have closed forms.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn, optim

from lipprof import attach, open_run
from lipprof.advice import Choice
from lipprof.optim import ELMO, FOSI
from lipprof.profiler import measure

SGD = partial(optim.SGD, lr=0.01)
START = torch.tensor([1.2, -0.4, 0.9, 2.1, 0.3], dtype=torch.float64)
LINEAR = torch.tensor([0.1, 1.5, 0.1, 0.02, -0.9], dtype=torch.float64)
RATES = torch.tensor([1.0, 1.7, 2.2, 0.6, 1.3], dtype=torch.float64)
TOP, BOTTOM = 3, 1
PLACES = (0, 1, 2, -1)  # of the eigenpairs measured, among the sorted eigenvalues
LIMIT = 6.0


class Axes(nn.Module):
    """Σ cosh(rᵢθᵢ) − sin(2θᵢ) + cᵢθᵢ."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(START.clone())
        self.steps = 0

    def forward(self):
        t = self.theta
        return (torch.cosh(RATES * t) - torch.sin(2 * t) + LINEAR * t).sum()


def closed_form(theta):
    """λ and L of every axis."""
    curvature = RATES**2 * torch.cosh(RATES * theta) + 4 * torch.sin(2 * theta)
    third = RATES**3 * torch.sinh(RATES * theta) + 8 * torch.cos(2 * theta)
    return curvature.numpy(), third.abs().numpy()


def by_hand(rule, theta, gradient):
    """Codes of the pairs on the pair axis."""
    curvature, lipschitz = closed_form(theta)
    order = np.argsort(-curvature)[list(PLACES)]
    slope = np.abs(gradient.numpy())
    limit = np.where(curvature > 0, 3 * curvature**2 / slope, 0) if rule == "newton-safe" else LIMIT
    second = (lipschitz < limit)[order]
    return np.where(second, Choice.SECOND, Choice.FIRST)


def recorded(path, kind=FOSI, rule="newton-safe", *, steps=24, push=3.0, **settings):
    """Train on a gradient that is not the probe's; what was so before every step."""
    model = Axes()
    options = {} if rule is None else dict(rule=rule, threshold=LIMIT)
    optimizer = kind(model.parameters(), SGD, **options)
    common = dict(
        loss=lambda model: model(), every=1, top=TOP, bottom=BOTTOM, diagonal_probes=0,
        stability=False, lipschitz=("exact",),
    )  # fmt: skip
    seen = []
    with attach(model, optimizer, path, **(common | settings)):
        for step in range(steps):
            optimizer.zero_grad()
            ((1 + push * np.sin(step) ** 2) * model()).backward()
            before = model.theta.detach().clone(), model.theta.grad.clone()
            optimizer.step()
            model.steps += 1
            seen.append((*before, dict(optimizer.assigned)))
    return open_run(path), optimizer, seen


@pytest.mark.parametrize("kind", [ELMO, FOSI])
@pytest.mark.parametrize("rule", ["newton-safe", "threshold"])
def test_the_choices_are_those_of_the_closed_form_on_the_gradient_stepped_on(tmp_path, kind, rule):
    run, optimizer, seen = recorded(tmp_path / "run.h5", kind, rule)
    expected = [by_hand(rule, theta, gradient) for theta, gradient, _ in seen]
    np.testing.assert_array_equal(run["pair_assigned"], expected)
    assert [list(row.values()) for _, _, row in seen] == run["pair_assigned"].tolist()
    assert {1, 2} == set(np.unique(run["pair_assigned"]))
    written = f"threshold(limit={LIMIT})" if rule == "threshold" else rule
    assert run.attrs["pair_rule"] == written


def test_the_threshold_recorded_is_of_the_gradient_stepped_on_not_of_the_probe(tmp_path):
    run, _, seen = recorded(tmp_path / "run.h5")
    for row, (theta, gradient, _) in enumerate(seen):
        curvature, _ = closed_form(theta)
        order = np.argsort(-curvature)[list(PLACES)]
        limit = np.where(curvature > 0, 3 * curvature**2 / np.abs(gradient.numpy()), 0)[order]
        np.testing.assert_allclose(run["pair_threshold"][row], limit, rtol=1e-6)
    assert not np.allclose(run["pair_threshold"], run["newton_threshold"], rtol=0.1)


@pytest.mark.parametrize("rule", ["newton-safe", "threshold", "quantile(share=0.5, of=units)"])
@pytest.mark.parametrize("lipschitz", ["drift", "exact"])
def test_switches_and_their_reasons_are_those_that_the_optimizer_kept(tmp_path, rule, lipschitz):
    run, optimizer, _ = recorded(tmp_path / "run.h5", rule=rule, lipschitz=(lipschitz,))
    place = {label: f"eigenspace {i + 1}" for i, label in enumerate(run.pair_labels)}
    told = [(s.iteration, place[s.name], s.to, s.reason) for s in run.pair_switches()]
    assert told == [(s.iteration, s.name, s.choice, s.reason) for s in optimizer.switches]
    assert len(told) > 3
    assert run.pair_switches(2) == run.pair_switches()[-2:]
    assert {(s.before, s.to) for s in run.pair_switches()} <= {(1, 2), (2, 1)}


def test_a_pair_without_l_has_no_answer_yet(tmp_path):
    run, _, seen = recorded(tmp_path / "run.h5", lipschitz=("drift",), steps=3)
    assert [list(row.values()) for _, _, row in seen] == run["pair_assigned"].tolist()
    assert not run["pair_assigned"][0].any()
    assert run["pair_assigned"][1].all()
    assert np.isfinite(run["pair_threshold"][0]).all()


def test_pairs_that_were_not_lent_are_left_open_and_the_others_keep_their_places(
    tmp_path, monkeypatch
):
    """At every measurement other pairs are over tolerance, at one of them all."""
    masks = [[0, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 0, 1]]
    masks, found = torch.tensor(masks, dtype=torch.bool), measure.eigenpairs
    left = iter(masks)

    def judged(*arguments, **options):
        return replace(found(*arguments, **options), converged=next(left))

    monkeypatch.setattr(measure, "eigenpairs", judged)
    run, optimizer, seen = recorded(tmp_path / "run.h5", steps=len(masks))
    np.testing.assert_array_equal(run["converged"], masks)
    chosen = run["pair_assigned"]
    for row, (theta, gradient, assigned) in enumerate(seen):
        lent = masks[row].numpy()
        expected = np.where(lent, by_hand("newton-safe", theta, gradient), Choice.NONE)
        np.testing.assert_array_equal(chosen[row], expected)
        if lent.any():
            assert list(assigned.values()) == chosen[row, lent].tolist()
    np.testing.assert_array_equal(np.isfinite(run["pair_threshold"]), masks)
    for switch in run.pair_switches():
        assert switch.reason.startswith(("L = ", "curvature λ = "))


def test_a_failed_measurement_records_no_choice_though_the_eigenspaces_stay_in_use(tmp_path):
    def loss(model):
        return model() * (float("nan") if model.steps == 3 else 1.0)

    run, optimizer, _ = recorded(tmp_path / "run.h5", steps=6, loss=loss)
    assert run["status"].tolist() == [0, 0, 0, 2, 0, 0]
    assert optimizer.eigenspaces is not None
    assert run["pair_assigned"].any(axis=1).tolist() == [True] * 3 + [False] + [True] * 2


def test_a_step_without_all_gradients_takes_no_choice(tmp_path):
    model = nn.ParameterList([nn.Parameter(START.clone()), nn.Parameter(START.clone())])
    optimizer = FOSI(model.parameters(), SGD, rule="threshold", threshold=LIMIT)
    settings = dict(every=1, top=2, bottom=0, diagonal_probes=0, lipschitz=("exact",))

    def loss(model):
        return sum((p**4).sum() for p in model)

    with attach(model, optimizer, tmp_path / "run.h5", loss=loss, **settings):
        for step in range(3):
            optimizer.zero_grad()
            (loss(model) if step != 1 else (model[0] ** 4).sum()).backward()
            optimizer.step()
    with open_run(tmp_path / "run.h5") as run:
        assert run["pair_assigned"].any(axis=1).tolist() == [True, False, True]


def test_without_a_rule_nothing_is_chosen(tmp_path):
    run, optimizer, _ = recorded(tmp_path / "run.h5", rule=None, steps=4)
    assert optimizer.recommendation is None
    assert not run["pair_assigned"].any()
    assert run.attrs["pair_rule"] == ""
    assert run.pair_switches() == []
