"""Both next steps of AMOS: against differences of the loss, recorded, followed, and unnoticed."""

import logging
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn, optim

import lipprof
from lipprof import AMOS, attach, open_run
from lipprof.advice import Choice, Descent
from lipprof.curvature import ParameterView
from lipprof.errors import ConfigError, RunFileError
from lipprof.optim.rehearsal import rehearse
from lipprof.profiler.budget import Budget
from lipprof.profiler.memory import kept_vectors
from lipprof.record import recorded_evidence
from lipprof.report import derived
from lipprof.report.recompute import recompute
from lipprof.settings import Settings

QUICK = dict(every=1, top=0, bottom=0, diagonal_probes=0, stability=False)
FIRST, SECOND = partial(optim.AdamW, lr=1e-2), partial(optim.SGD, lr=0.3, momentum=0.5)


class Net(nn.Module):
    """Its loss is smooth, of all orders, and every tensor sees the others."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.hidden, self.out = nn.Linear(4, 5), nn.Linear(5, 3)
            self.inputs = torch.randn(24, 4, dtype=torch.float64)
        self.double()
        self.labels = torch.arange(24) % 3

    def loss(self, part=slice(None)):
        logits = self.out(torch.tanh(self.hidden(self.inputs[part])))
        return nn.functional.cross_entropy(logits, self.labels[part])


class Cubic(nn.Module):
    """A polynomial of third degree whose tensors are coupled: third derivatives are constant."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.5, -0.3], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.7], dtype=torch.float64))

    def loss(self, part=slice(None)):  # noqa: ARG002
        return (self.a**3).sum() + self.a[0] * self.b[0] * self.a[1] + 2 * (self.b**2).sum()


def amos_of(model, first=FIRST, second=SECOND, **options):
    return AMOS(model.named_parameters(), first, second, **options)


def train(model, optimizer, iterations, *, closures=False, batches=3):
    for iteration in range(iterations):

        def closure(part=slice(iteration % batches, None, batches)):
            optimizer.zero_grad()
            loss = model.loss(part)
            loss.backward()
            return loss

        if closures:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def profiled(tmp_path, model, optimizer, iterations, *, closures=False, batches=3, **settings):
    path = tmp_path / f"{len(list(tmp_path.glob('*.h5')))}.h5"
    options = QUICK | dict(loss=lambda m: m.loss(), descents=True) | settings
    with attach(model, optimizer, path, **options):
        train(model, optimizer, iterations, closures=closures, batches=batches)
    return open_run(path)


def along(model, directions):
    """f(θ + Σ x_i d_i) as a function of the coefficients x, in float64."""
    named = {n: p.detach().clone() for n, p in model.named_parameters()}

    def loss(*coefficients):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(
                    named[name]
                    + sum(x * d[name] for x, d in zip(coefficients, directions, strict=True))
                )
            value = float(model.loss())
            for name, p in model.named_parameters():
                p.copy_(named[name])
        return value

    return loss


@pytest.mark.parametrize("side", ["first", "second"])
@pytest.mark.parametrize("kind", [Net, Cubic])
def test_shares_are_differences_of_the_loss_along_the_step(tmp_path, kind, side):
    model = kind()
    optimizer = amos_of(model)
    with profiled(tmp_path, model, optimizer, 2) as run:
        row = run.measurement(1)
        evidence = recorded_evidence(row, run.tensor_names, run.tensor_numel)
    again = kind()
    optimizer = amos_of(again)
    train(again, optimizer, 1)
    optimizer.zero_grad()
    again.loss(slice(1, None, 3)).backward()
    updates = rehearse(optimizer)[side == "second"]
    step = {name: updates[p] for name, p in again.named_parameters()}
    candidate, e = getattr(evidence, side), 1e-3
    for i, unit in enumerate(step):
        alone = {n: d if n == unit else torch.zeros_like(d) for n, d in step.items()}
        f = along(again, (alone, step))  # mixed derivatives: the unit's share, cross terms and all
        slope = (f(e, 0) - f(-e, 0)) / (2 * e)
        mixed = (f(e, e) - f(e, -e) - f(-e, e) + f(-e, -e)) / (4 * e * e)
        scale = abs(candidate.slope).max()
        assert candidate.slope[i] == pytest.approx(-slope, rel=1e-5, abs=1e-9 * scale)
        assert candidate.curvature[i] == pytest.approx(mixed, rel=1e-4, abs=1e-6 * scale)
        if kind is Cubic:
            h = 1.0  # exact for a cubic at any distance
            third = (f(h, h) - 2 * f(h, 0) + f(h, -h) - f(-h, h) + 2 * f(-h, 0) - f(-h, -h)) / 2
            assert candidate.bend[i] == pytest.approx(third, rel=1e-6, abs=1e-9 * scale)
    f = along(again, (step,))
    change, terms = f(1) - f(0), (candidate.bend.sum() / 6, candidate.curvature.sum() / 2)
    foreseen = getattr(row, f"{side}_descent").sum()
    assert foreseen == pytest.approx(terms[0] + terms[1] - candidate.slope.sum(), rel=1e-12)
    tolerance = 1e-9 if kind is Cubic else 0.02 * abs(change)
    assert foreseen == pytest.approx(change, rel=1e-9, abs=tolerance)


def test_the_step_taken_is_measured_and_costs_are_counted(tmp_path):
    model = Net()
    optimizer, losses = amos_of(model), []
    optimizer.register_step_post_hook(lambda *_: losses.append(float(model.loss().detach())))
    before = float(model.loss().detach())
    with profiled(tmp_path, model, optimizer, 3) as run:
        np.testing.assert_allclose(run["achieved_descent"], np.diff([before, *losses]), rtol=1e-9)
        assert run["num_matvecs"].tolist() == [2, 2, 2]
        assert run["num_losses"].tolist() == [2, 2, 2]
        foreseen = derived.foreseen_changes(run)
        np.testing.assert_allclose(foreseen.ran, run["achieved_descent"], rtol=1e-3)


def test_a_closure_s_gradients_are_the_step_s_own(tmp_path):
    found = []
    for closures in (False, True):
        model = Net()
        with profiled(tmp_path, model, amos_of(model), 4, closures=closures) as run:
            found.append([run["first_descent"], run["second_slope"]])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("kind", ["tensor", "module", 7])
def test_training_does_not_notice(tmp_path, kind):
    results = []
    for watched in (False, True):
        torch.manual_seed(5)
        model = Net()
        optimizer = amos_of(model, units=kind)
        if watched:
            profiled(tmp_path, model, optimizer, 5).close()
        else:
            train(model, optimizer, 5)
        state = [optimizer.state_dict()["state"], dict(model.named_parameters())]
        results.append((state, torch.get_rng_state(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_tensors_go_where_the_loss_falls_further(tmp_path):
    still = partial(optim.SGD, lr=1e-9)
    for arms, side in (((still, SECOND), Choice.SECOND), ((SECOND, still), Choice.FIRST)):
        model = Net()
        optimizer = amos_of(model, *arms, start="first" if side is Choice.SECOND else "second")
        asked = dict(rule="descent", descents=False, batches=1)
        with profiled(tmp_path, model, optimizer, 5, **asked) as run:
            assert set(run["assigned"][-1]) == {side}
            recorded = run.recommendation()
            assert "by the first optimizer" in recorded.reason(0)
            again = recompute(run)
        np.testing.assert_array_equal(recorded.low, again.low)
        np.testing.assert_array_equal(recorded.choice, again.choice)
        assert set(optimizer.assigned.values()) == {side}


def test_an_arm_that_goes_beyond_all_bounds_is_left(tmp_path):
    model = Net()
    optimizer = amos_of(model, second=partial(optim.SGD, lr=1e200))
    with profiled(tmp_path, model, optimizer, 2, rule="descent") as run:
        assert set(run["assigned"].ravel()) == {Choice.FIRST}
        assert np.isposinf(run["second_descent"]).all()
        assert set(run["recommendation"].ravel()) == {Choice.FIRST}


def test_what_may_not_leave_has_no_second_step(tmp_path):
    model = Net()
    optimizer = amos_of(model, eligible=lambda name, p: p.ndim == 2)
    with profiled(tmp_path, model, optimizer, 2, rule="descent") as run:
        assert np.isnan(run["second_descent"][0]).tolist() == [False, True, False, True]
        assert np.isfinite(run["first_descent"]).all()
        assert run.recommendation().reason(1) == "the second optimizer has no step for it"
        assert run.recommendation()[run.tensor_names[1]] is Choice.FIRST


def test_a_run_can_be_judged_by_the_rule_later_or_says_why_not(tmp_path):
    model = Net()
    with profiled(tmp_path, model, amos_of(model), 4, rule="random(share=1)") as run:
        answer = recompute(run, rule="descent")
        assert answer.rule == Descent()
        assert answer.evidence.second is not None
    without = profiled(tmp_path, model, amos_of(model), 2, descents=False, diagonal_probes=2)
    with without, pytest.raises(RunFileError, match=r"has none\. Record a run with descents=True"):
        recompute(without, rule="descent")


def test_what_cannot_be_measured_is_refused_at_attach(tmp_path):
    model, path = Net(), tmp_path / "run.h5"
    loss = {"loss": lambda m: m.loss()}
    with pytest.raises(ConfigError, match=r"rule='descent' compares.*the optimizer is a SGD"):
        attach(model, optim.SGD(model.parameters(), lr=1), path, rule="descent", **loss, **QUICK)
    with pytest.raises(ConfigError, match=r"descents=True: .*Pass loss="):
        attach(model, amos_of(model), path, descents=True, **QUICK)
    with pytest.raises(ConfigError, match="which calibrate=True changes"):
        attach(model, amos_of(model), path, descents=True, calibrate=True, **loss, **QUICK)
    other = AMOS([(f"x.{n}", p) for n, p in model.named_parameters()], FIRST, SECOND)
    with pytest.raises(ConfigError, match="Unknown here"):
        attach(model, other, path, rule="descent", **loss, **QUICK)
    assert not path.exists()


def test_amos_alone_says_that_it_cannot_follow_the_rule():
    model = Net()
    optimizer = amos_of(model, rule="descent")
    before = model.hidden.weight.detach().clone()
    model.loss().backward()
    with pytest.raises(ConfigError, match=r"Call lipprof\.attach\(.*rule='descent'\)"):
        optimizer.step()
    assert torch.equal(model.hidden.weight, before)


def test_amos_waits_for_the_profiler_s_first_measurement(tmp_path):
    model = Net()
    optimizer = amos_of(model, rule="descent")
    with profiled(tmp_path, model, optimizer, 3, rule="descent", wait=2) as run:
        assert run["iteration"].tolist() == [2]


def test_a_step_without_gradients_is_recorded_with_the_reason(tmp_path, caplog):
    model = Net()
    optimizer = amos_of(model)
    options = QUICK | dict(rule="descent", loss=lambda m: m.loss())
    with caplog.at_level(logging.WARNING), attach(model, optimizer, tmp_path / "a.h5", **options):
        optimizer.step()
        optimizer.step()
    with open_run(tmp_path / "a.h5") as run:
        assert "no parameter has a gradient" in run["reason"][1]
        assert np.isnan(run["achieved_descent"]).all()
        assert not run["recommendation"].any()
    assert len([m for m in caplog.messages if "next steps are not measured" in m]) == 1
    strict = attach(model, optimizer, tmp_path / "b.h5", strict=True, **options)
    with strict, pytest.raises(ConfigError, match="no parameter has a gradient"):
        optimizer.step()


def test_cost_and_memory_are_foreseen():
    plain, asked = Settings(), Settings(descents=True)
    for wanted in (asked, Settings(rule="inverted(rule=descent)")):
        work = Budget(wanted).full
        assert work.candidates
        assert work.expected_matvecs > Budget(plain).full.expected_matvecs
        assert kept_vectors(wanted) > kept_vectors(plain)
    assert all(work.candidates for work in Budget(asked)._kinds())


def test_a_report_shows_them(tmp_path):
    from lipprof.report.figures.series import descents_figure
    from lipprof.report.sections import sections

    model = Net()
    with profiled(tmp_path, model, amos_of(model), 4) as run:
        shown = {panel.id for section in sections(run, 3) for panel in section.panels}
        assert "descents" in shown
        foreseen = derived.foreseen_changes(run)
        lines = {t.name: np.asarray(t.y) for t in descents_figure(run, foreseen).data}
        np.testing.assert_array_equal(lines["achieved"], run["achieved_descent"])
        np.testing.assert_array_equal(lines["all by the first"], run["first_descent"].sum(axis=1))
        np.testing.assert_array_equal(lines["foreseen"], lines["all by the first"])
        assert "change achieved" in derived.key_series(run)
    assert lipprof.load_settings(rule=Descent()).rule == "descent"
    assert ParameterView.of(model).n == 43
