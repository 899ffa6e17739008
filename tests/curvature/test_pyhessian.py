import gc
import weakref

import pytest
import torch
from pyhessian import hessian
from torch import nn

import lipprof
from lipprof.curvature import ParameterView, ProbeLoss, retained_hessian
from lipprof.curvature.hessian.pyhessian_engine import pyhessian_eigenpairs, pyhessian_trace, refuse
from lipprof.errors import ConfigError, NonfiniteError, NotDifferentiableError
from lipprof.linalg import materialise
from tests.curvature.test_guards import assert_same, states
from tests.curvature.test_hessian import Quadratic
from tests.linalg import spectra
from tests.models import KINDS, problem


def their_pairs(model, loss, probe=None, **keywords):
    return pyhessian_eigenpairs(ProbeLoss(model, loss, probe), ParameterView.of(model), **keywords)


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_our_top_end(kind):
    p = problem(kind)
    p.model.eval()
    theirs = their_pairs(p.model, p.loss, top=2, tol=1e-3, max_matvecs=4000)
    ours = lipprof.spectrum(p.model, p.loss, top=2, bottom=0, tol=1e-4)
    assert theirs.converged.all()
    torch.testing.assert_close(theirs.values, ours.values, rtol=1e-3, atol=0)


def test_residuals_are_those_of_the_true_hessian():
    matrix = spectra.with_spectrum(spectra.loss_surface(60))
    model = Quadratic(matrix)
    pairs = their_pairs(model, lambda m: m(), top=3, tol=1e-2)
    true = (pairs.vectors @ matrix - pairs.values[:, None] * pairs.vectors).norm(dim=1)
    torch.testing.assert_close(pairs.residuals, true, rtol=1e-6, atol=1e-12)
    gram = pairs.vectors @ pairs.vectors.T
    torch.testing.assert_close(gram, torch.eye(3, dtype=torch.float64))


def test_negative_eigenvalues_of_larger_magnitude_are_passed_over():
    """Power iteration alone would return -9, -8 and 7 as the "top 3"."""
    values = torch.tensor([-9.0, -8.0, 7.0, 5.0, 3.0, *[0.1] * 15], dtype=torch.float64)
    model = Quadratic(spectra.with_spectrum(values))
    pairs = their_pairs(model, lambda m: m(), top=3, tol=1e-3, max_matvecs=5000)
    torch.testing.assert_close(
        pairs.values, torch.tensor([7.0, 5.0, 3.0], dtype=torch.float64), rtol=1e-5, atol=0
    )


def test_the_budget_is_kept_and_what_did_not_converge_is_marked():
    model = Quadratic(spectra.with_spectrum(torch.linspace(1, 2, 40, dtype=torch.float64)))
    pairs = their_pairs(model, lambda m: m(), top=2, tol=1e-6, max_matvecs=30)
    assert pairs.num_matvecs <= 30 + 2
    assert not pairs.converged.any()


def test_trace_is_within_its_standard_error_of_the_exact_one():
    p = problem("mlp", torch.float64)
    p.model.eval()
    view = ParameterView.of(p.model)
    exact = float(materialise(retained_hessian(ProbeLoss(p.model, p.loss), view)).trace())
    estimate = pyhessian_trace(ProbeLoss(p.model, p.loss), view, probes=200)
    assert estimate.num_matvecs == 200
    assert abs(estimate.trace - exact) < 4 * estimate.stderr < abs(exact)


def test_trace_of_a_negative_matrix_does_not_stop_at_once():
    model = Quadratic(-torch.diag(torch.arange(1.0, 11.0, dtype=torch.float64)))
    estimate = pyhessian_trace(ProbeLoss(model, lambda m: m()), ParameterView.of(model), probes=5)
    assert (estimate.trace, estimate.stderr, estimate.num_matvecs) == (-55.0, 0.0, 5)


def test_microbatches_are_weighted_by_size():
    p = problem("mlp", torch.float64)
    p.model.eval()
    probe = [(p.inputs[:30], p.targets[:30]), (p.inputs[30:], p.targets[30:])]
    whole = their_pairs(p.model, p.loss, top=1, tol=1e-5)
    parts = their_pairs(p.model, p.loss, probe, top=1, tol=1e-5)
    torch.testing.assert_close(whole.values, parts.values)


def test_frozen_unused_and_linear_parameters():
    """PyHessian alone fails on each."""
    model = nn.ModuleDict({"used": nn.Linear(4, 2), "unused": nn.Linear(3, 3)}).double()
    model["used"].bias.requires_grad_(False)
    model.linear = nn.Parameter(torch.ones(2, dtype=torch.float64))
    inputs = torch.randn(10, 4, dtype=torch.float64)

    def loss(m):
        return m["used"](inputs).square().mean() + m.linear.sum()

    pairs = their_pairs(model, loss, top=1, tol=1e-6)
    expected = torch.linalg.eigvalsh(inputs.T @ inputs / 10)[-1]
    assert float(pairs.values[0]) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_leaves_no_trace(kind):
    p = problem(kind)
    p.loss(p.model).backward()
    p.model.train()
    before = states(p.model)
    their_pairs(p.model, p.loss, top=1, tol=0.1)
    assert_same(before, states(p.model))


def test_the_graph_is_freed_without_the_garbage_collector():
    p = problem("mlp")
    held = []

    class Hook:
        def __call__(self, grad):
            return None

    def loss(m):
        value = p.loss(m)
        hook = Hook()
        held.append(weakref.ref(hook))
        value.register_hook(hook)
        return value

    gc.disable()
    try:
        their_pairs(p.model, loss, top=1, tol=0.1)
        assert held[0]() is None
    finally:
        gc.enable()


def test_train_mode_is_kept():
    """PyHessian would silently switch to eval mode."""
    p = problem("mlp", torch.float64)
    seen = []

    def loss(m):
        seen.append(m.training)
        return p.loss(m)

    p.model.train()
    their_pairs(p.model, loss, top=1, tol=0.1)
    assert seen == [True]


@pytest.mark.parametrize("what", ["bottom", "density", "diagonal", "blocks", "stability"])
def test_what_it_cannot_do_is_said(what):
    with pytest.raises(ConfigError, match="PyHessian 0.1 .* or the default engine"):
        refuse(what)


def test_no_bottom_end():
    p = problem("mlp")
    with pytest.raises(ConfigError, match="bottom=0"):
        their_pairs(p.model, p.loss, top=1, bottom=1)


@pytest.mark.filterwarnings("ignore:Using backward")  # PyHessian's own way
def test_density_still_fails_on_this_torch():
    """If not, PyHessian or torch has changed, and what ``refuse`` says is out of date."""
    p = problem("mlp")
    theirs = hessian(p.model, nn.CrossEntropyLoss(), (p.inputs, p.targets), cuda=False)
    with pytest.raises(RuntimeError, match="removed"):
        theirs.density(iter=3)


def test_bad_input_is_named():
    p = problem("mlp")
    with pytest.raises(ConfigError, match="top=1000"):
        their_pairs(p.model, p.loss, top=1000)
    with pytest.raises(NotDifferentiableError, match="one element"):
        their_pairs(p.model, lambda m: m(p.inputs), top=1)
    with pytest.raises(NonfiniteError, match="loss is nan"):
        their_pairs(p.model, lambda m: p.loss(m) * torch.nan, top=1)
    with pytest.raises(NotDifferentiableError, match="cdist behind '3"):
        their_pairs(p.model, lambda m: torch.cdist(m(p.inputs[:9]), torch.zeros(2, 3)).sum(), top=1)


def test_parameters_that_step_in_the_backward_are_refused():
    p = problem("mlp")
    p.model[0].weight.register_post_accumulate_grad_hook(lambda q: q.data.zero_())
    with pytest.raises(ConfigError, match="post-accumulate"):
        their_pairs(p.model, p.loss, top=1)
    assert p.model[0].weight.any()
