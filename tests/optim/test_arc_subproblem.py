"""The cubic sub-problem by the theorem that characterises its solution, and by a general minimiser.

Whatever finds it, s is the global minimiser exactly when (H + σ‖s‖I)s = −g and H + σ‖s‖I ⪰ 0.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from lipprof.errors import NonfiniteError
from lipprof.linalg import DenseOperator
from lipprof.optim.arc_subproblem import CubicSubproblem, cubic_minimiser
from tests.linalg import spectra

sizes = st.floats(1e-6, 1e6)
magnitudes = st.one_of(st.just(0.0), st.floats(1e-100, 1e3))
signed = st.builds(lambda size, sign: sign * size, magnitudes, st.sampled_from([-1.0, 1.0]))
sigmas = st.floats(1e-8, 1e8)


def vector(numbers):
    return torch.tensor(list(numbers), dtype=torch.float64)


def model(s, hessian, gradient, sigma):
    return float(gradient @ s + s @ hessian @ s / 2 + sigma / 3 * s.norm() ** 3)


def assert_global_minimiser(s, hessian, gradient, sigma, rtol=1e-8):
    nu = sigma * s.norm()
    scale = float(torch.linalg.matrix_norm(hessian, 2) + nu)
    residual = hessian @ s + nu * s + gradient
    assert residual.norm() <= rtol * max(scale * float(s.norm()), float(gradient.norm()))
    assert torch.linalg.eigvalsh(hessian)[0] + nu >= -rtol * scale


@given(
    pairs=st.lists(st.tuples(signed, signed), min_size=1, max_size=6),
    sigma=sigmas,
    unit=sizes,
)
def test_meets_the_conditions_of_a_global_minimiser(pairs, sigma, unit):
    values, components = zip(*sorted(pairs), strict=True)
    values, components = unit * vector(values), vector(components)
    s = cubic_minimiser(values, components, sigma)
    assert_global_minimiser(s, torch.diag(values), components, sigma)


@pytest.mark.parametrize("first", [0.0, 1e-300, 1e-17, 1e-9, 1e-3])
@pytest.mark.parametrize("multiplicity", [1, 2])
def test_next_to_the_hard_case(first, multiplicity):
    """g (nearly) orthogonal to the lowest eigenvector: its part of s comes from the length."""
    values = vector([-3.0] * multiplicity + [1.0, 2.0])
    components = vector([first] * multiplicity + [0.5, -0.5])
    s = cubic_minimiser(values, components, 0.1)
    assert_global_minimiser(s, torch.diag(values), components, 0.1)
    if first < 1e-8:
        assert s.norm().item() == pytest.approx(30, rel=1e-6)
        assert s[multiplicity:].tolist() == pytest.approx([-0.125, 0.1], rel=1e-6)


def test_orthogonal_to_the_lowest_without_being_hard():
    """The rest of g is long enough: ν > 3, and nothing along the lowest eigenvector."""
    values, components = vector([-3.0, 1.0]), vector([0.0, 100.0])
    s = cubic_minimiser(values, components, 1.0)
    assert s[0] == 0
    assert_global_minimiser(s, torch.diag(values), components, 1.0)


def test_no_gradient_and_no_negative_curvature_is_no_step():
    assert cubic_minimiser(vector([0.0, 1.0]), vector([0.0, 0.0]), 1.0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("seed", range(5))
def test_nothing_lower_is_found_by_a_general_minimiser(seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, dtype=torch.float64, generator=generator).sort().values
    components = torch.randn(4, dtype=torch.float64, generator=generator)
    hessian, sigma = torch.diag(values), 0.3
    lowest = model(cubic_minimiser(values, components, sigma), hessian, components, sigma)
    for _ in range(10):
        start = 5 * torch.randn(4, dtype=torch.float64, generator=generator)
        found = minimize(lambda s: model(vector(s), hessian, components, sigma), start.numpy())
        assert found.fun >= lowest - 1e-9
    assert found.fun < 0


def indefinite(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, dtype=torch.float64, generator=generator)
    return spectra.with_spectrum(values), torch.randn(n, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("sigma", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("n", [1, 2, 30])
def test_krylov_agrees_with_the_dense_solution(n, sigma):
    hessian, gradient = indefinite(n)
    values, vectors = torch.linalg.eigh(hessian)
    expected = vectors @ cubic_minimiser(values, vectors.T @ gradient, sigma)
    problem = CubicSubproblem(DenseOperator(hessian), gradient, tol=1e-30, max_matvecs=60)
    found = problem.minimise(sigma)
    assert found.converged
    assert problem.num_matvecs <= n
    torch.testing.assert_close(found.step, expected, rtol=1e-5, atol=1e-7)
    assert found.descent == pytest.approx(-model(expected, hessian, gradient, sigma), rel=1e-8)
    assert found.regularisation == pytest.approx(sigma / 3 * float(expected.norm()) ** 3, rel=1e-5)


@pytest.mark.parametrize("sigma", [1e-2, 1.0, 100.0])
def test_the_residual_is_the_gradient_of_the_model(sigma):
    hessian, gradient = indefinite(60)
    problem = CubicSubproblem(DenseOperator(hessian), gradient, tol=1e-3, max_matvecs=40)
    found = problem.minimise(sigma)
    s = found.step
    slope = gradient + hessian @ s + sigma * s.norm() * s
    assert found.residual == pytest.approx(float(slope.norm()), rel=1e-6)
    assert found.converged == (found.residual <= 1e-3 * float(gradient.norm()))


def test_another_sigma_goes_on_with_the_same_basis():
    hessian, gradient = indefinite(80)
    problem = CubicSubproblem(DenseOperator(hessian), gradient, tol=1e-6, max_matvecs=80)
    problem.minimise(1.0)
    spent = problem.num_matvecs
    problem.minimise(8.0)
    assert problem.num_matvecs == spent
    assert problem.minimise(0.01).converged
    assert spent < problem.num_matvecs < 80


def test_a_spent_budget_is_told():
    hessian, gradient = indefinite(100)
    found = CubicSubproblem(DenseOperator(hessian), gradient, tol=1e-9, max_matvecs=5)
    assert not found.minimise(0.01).converged
    assert found.num_matvecs == 5


def test_an_invariant_space_is_the_end():
    """Three different eigenvalues: Krylov spaces have three dimensions, the rest is rounding."""
    hessian = spectra.with_spectrum(vector([1.0] * 7 + [-2.0] * 4 + [5.0] * 9))
    gradient = torch.randn(20, dtype=torch.float64)
    problem = CubicSubproblem(DenseOperator(hessian), gradient, tol=1e-30, max_matvecs=20)
    found = problem.minimise(0.5)
    assert found.converged
    assert problem.num_matvecs == 3
    assert_global_minimiser(found.step, hessian, gradient, 0.5)


def test_a_nonfinite_product_is_an_error():
    op = DenseOperator(torch.full((3, 3), torch.nan))
    with pytest.raises(NonfiniteError):
        CubicSubproblem(op, torch.ones(3), tol=1e-6, max_matvecs=5).minimise(1.0)
