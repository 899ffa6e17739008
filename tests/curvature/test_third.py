"""∇(vᵀ H v) against closed forms, dense eigenvalues along θ, and differences of exact products."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lipprof.curvature import (
    CapturedForward,
    HessianOperator,
    ParameterView,
    ProbeLoss,
    RandomState,
    clone_buffers,
    gradient_graph,
    output_edges,
    replayed_graph,
    third_derivatives,
    thrice_differentiable,
)
from lipprof.errors import NotDifferentiableError, ThirdDerivativeError
from lipprof.linalg import materialise
from tests.models import KINDS, Attention, problem


class Vector(nn.Module):
    """θ itself."""

    def __init__(self, *theta):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))


def unit(n, seed=0, dtype=torch.float64):
    vector = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return vector / vector.norm()


def third(model, loss, *vectors, **keywords):
    view = ParameterView.of(model)
    source = ProbeLoss(model, loss, **keywords)
    return third_derivatives(source, view, torch.stack(vectors)).gradients


def dense_hessian(model, loss):
    view = ParameterView.of(model)
    with thrice_differentiable(model):
        return materialise(HessianOperator(view, [gradient_graph(loss(model), view)]))


def symmetric_tensor(n):
    tensor = torch.randn(n, n, n, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    return sum(tensor.permute(order) for order in orders) / 6


def test_of_a_cubic_it_is_the_tensor_itself():
    """Of f = A·θ³/6: H = A·θ, ∇(vᵀHv) = A·v²."""
    tensor = symmetric_tensor(5)
    v, w = unit(5, 1), unit(5, 2)

    def cubic(m):
        return torch.einsum("ijk,i,j,k->", tensor, m.theta, m.theta, m.theta) / 6

    model = Vector(0.3, -1.0, 2.0, 0.0, 0.5)
    view = ParameterView.of(model)
    found = third_derivatives(ProbeLoss(model, cubic), view, torch.stack([v, v, w]))
    mixed = third_derivatives(ProbeLoss(model, cubic), view, v[None], w[None])
    for row, (a, b) in zip(found.gradients, [(v, v), (v, v), (w, w)], strict=True):
        torch.testing.assert_close(row, torch.einsum("ijk,i,j->k", tensor, a, b))
    torch.testing.assert_close(mixed.gradients[0], torch.einsum("ijk,i,j->k", tensor, v, w))
    hessian = torch.einsum("ijk,k->ij", tensor, model.theta.detach())
    torch.testing.assert_close(found.products[0], hessian @ v)


def test_of_logistic_regression():
    """Of f = Σ log(1 + e^{x·θ}): ∇(vᵀHv) = Σ s(1−s)(1−2s) (x·v)² x."""
    inputs = torch.randn(20, 3, dtype=torch.float64)
    model, v = Vector(0.5, -1.0, 2.0), unit(3)
    s = torch.sigmoid(inputs @ model.theta.detach())
    expected = (s * (1 - s) * (1 - 2 * s) * (inputs @ v) ** 2) @ inputs
    (found,) = third(model, lambda m: F.softplus(inputs @ m.theta).sum(), v)
    torch.testing.assert_close(found, expected)


def test_of_softmax_regression():
    """Of f = log Σ e^θ: ∇(vᵀHv) is the gradient of the variance of v under the softmax."""
    model, v = Vector(0.5, -1.0, 2.0, 0.1), unit(4)
    p = model.theta.detach().softmax(0)
    mean = p @ v
    expected = p * ((v - mean) ** 2 - p @ (v - mean) ** 2)
    (found,) = third(model, lambda m: m.theta.logsumexp(0), v)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_predicts_how_dense_eigenvalues_move(kind):
    """Hellmann-Feynman: λᵢ(θ ± ε d) by eigh, matched by their vectors."""
    p = problem(kind, torch.float64, count=12)
    p.model.eval()
    view = ParameterView.of(p.model)
    values, vectors = torch.linalg.eigh(dense_hessian(p.model, p.loss))
    chosen = [-1, -2, 0]
    gradients = third(p.model, p.loss, *vectors.T[chosen])
    direction, epsilon, theta = unit(view.n, 7), 1e-5, view.snapshot()
    moved = []
    for sign in (1, -1):
        for parameter, part in zip(
            view.parameters, view.split(theta + sign * epsilon * direction), strict=True
        ):
            parameter.data.copy_(part)
        there, basis = torch.linalg.eigh(dense_hessian(p.model, p.loss))
        moved.append(there[(vectors.T[chosen] @ basis).abs().argmax(1)])
    slopes = (moved[0] - moved[1]) / (2 * epsilon)
    scale = float(gradients.norm(dim=1).max())
    torch.testing.assert_close(gradients @ direction, slopes, rtol=1e-4, atol=1e-6 * scale)


def relu_network():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ).double()


def test_of_a_relu_network():
    """Along θ + t v, away from kinks, vᵀHv of the dense matrix at both sides."""
    model, images = relu_network(), torch.randn(8, 1, 6, 6, dtype=torch.float64)
    targets = torch.randint(0, 3, (8,))

    def loss(m):
        return F.cross_entropy(m(images), targets)

    view = ParameterView.of(model)
    v, direction, epsilon = unit(view.n, 1), unit(view.n, 2), 1e-7
    (found,) = third(model, loss, v)
    theta, quotients = view.snapshot(), []
    for sign in (1, -1):
        point = view.split(theta + sign * epsilon * direction)
        for parameter, part in zip(view.parameters, point, strict=True):
            parameter.data.copy_(part)
        quotients.append(v @ dense_hessian(model, loss) @ v)
    slope = (quotients[0] - quotients[1]) / (2 * epsilon)
    torch.testing.assert_close(found @ direction, slope, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_unequal_microbatches_add_up_to_the_whole_batch(kind):
    p = problem(kind, torch.float64, count=12)
    p.model.eval()
    v = unit(ParameterView.of(p.model).n)
    (whole,) = third(p.model, p.loss, v)
    probe = [(p.inputs[a:b], p.targets[a:b]) for a, b in [(0, 2), (2, 9), (9, 12)]]
    (parts,) = third(p.model, p.loss, v, probe=probe)
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize(("c", "s"), [(8.0, 1.0), (1.0, 4.0), (0.5, 2.0)])
def test_scales_as_loss_per_parameter_cubed(c, s):
    inputs = torch.randn(20, 3, dtype=torch.float64)
    theta, v = (0.5, -1.0, 2.0), unit(3)

    def loss(m):
        return F.softplus(inputs @ m.theta).square().sum()

    (before,) = third(Vector(*theta), loss, v)
    rescaled = Vector(*(x / s for x in theta))
    (after,) = third(rescaled, lambda m: c * F.softplus(inputs @ (s * m.theta)).square().sum(), v)
    torch.testing.assert_close(after, c * s**3 * before)


def test_zeros_for_parameters_that_the_loss_does_not_use():
    model = nn.ModuleDict({"used": Vector(1.0, 2.0), "unused": Vector(3.0)})
    found = third(model, lambda m: (m["used"].theta ** 3).sum(), torch.ones(3).double())
    assert found.tolist() == [[6.0, 6.0, 0.0]]


@pytest.mark.parametrize("power", [1, 2])
def test_zero_where_the_curvature_is_constant(power):
    model = Vector(1.0, 2.0)
    found = third(model, lambda m: (m.theta**power).sum(), torch.ones(2).double())
    assert found.tolist() == [[0.0, 0.0]]


def test_other_vectors_and_graphs_are_not_disturbed():
    p = problem("batchnorm", torch.float64)
    p.model.train()
    before = {key: value.clone() for key, value in p.model.state_dict().items()}
    random_state = torch.get_rng_state()
    v, w = unit(ParameterView.of(p.model).n), unit(ParameterView.of(p.model).n, 3)
    both = third(p.model, p.loss, v, w)
    torch.testing.assert_close(both[1], third(p.model, p.loss, w)[0], rtol=0, atol=0)
    torch.testing.assert_close(p.model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in p.model.parameters())


class Tripled(torch.autograd.Function):
    """x³, whose second derivative has none of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return Once.apply(ctx.saved_tensors[0]) * grad


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 3 * x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 6 * ctx.saved_tensors[0] * grad


def test_a_missing_third_derivative_is_an_error():
    with pytest.raises(ThirdDerivativeError, match="no third derivative"):
        third(
            Vector(1.0, 2.0),
            lambda m: Tripled.apply(m.theta).square().sum(),
            torch.ones(2).double(),
        )


class Cubed(torch.autograd.Function):
    """x³ by functions the last of which cannot be differentiated."""

    @staticmethod
    def forward(ctx, x, order=3):
        ctx.order = order
        ctx.save_for_backward(x)
        return {3: x**3, 2: 3 * x**2, 1: 6 * x}[order]

    @staticmethod
    def backward(ctx, grad):
        if ctx.order == 1:
            raise NotImplementedError("the derivative for 'cubed' is not implemented.")
        return Cubed.apply(ctx.saved_tensors[0], ctx.order - 1) * grad, None


def test_an_operator_without_a_third_derivative_is_an_error():
    with pytest.raises(ThirdDerivativeError, match="no third derivative: .*'cubed'"):
        third(Vector(1.0, 2.0), lambda m: Cubed.apply(m.theta).sum(), torch.ones(2).double())


def test_activation_checkpoints_run_again_by_the_same_kernels():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)).double()
    inputs, v = torch.randn(5, 3, dtype=torch.float64), unit(ParameterView.of(model).n)

    def checkpointed(m):
        middle = torch.utils.checkpoint.checkpoint(m[:3], inputs, use_reentrant=False)
        return m[3](middle).square().sum()

    plain = third(model, lambda m: m(inputs).square().sum(), v)
    torch.testing.assert_close(third(model, checkpointed, v), plain)


HEADS = {
    "criterion in the loop": lambda z, targets: F.cross_entropy(z.flatten(0, -2), targets),
    "quadratic": lambda z, targets: z.square().mean(),
    "linear": lambda z, targets: z.mean(),
    "several factors": lambda z, targets: z.exp().mean() * z.sin().mean(),
}


@pytest.mark.parametrize("head", HEADS)
def test_of_a_replayed_step(head):
    """Forward by fused kernels, criterion in the live graph, against the closure's."""
    p = problem("attention", torch.float64, count=6)
    model, inputs, targets = Attention().double(), p.inputs, p.targets.flatten()
    view = ParameterView.of(model)
    random_state, buffers = RandomState.capture(), clone_buffers(model)
    output = model(inputs)
    autocast = False, torch.bfloat16
    captured = CapturedForward((inputs,), {}, random_state, buffers, autocast, output_edges(output))
    loss = HEADS[head](output, targets)
    graph = replayed_graph(loss, [captured], model, view, thrice=True)
    v = unit(view.n)
    replayed = third_derivatives(HessianOperator(view, [graph]), view, v[None])
    expected = third(model, lambda m: HEADS[head](m(inputs), targets), v)
    torch.testing.assert_close(replayed.gradients, expected)
    loss.backward()  # the step goes on


def test_a_loss_of_another_model_is_refused():
    with pytest.raises(NotDifferentiableError, match="depend"):
        third(Vector(1.0), lambda _: Vector(1.0).theta.sum(), torch.ones(1).double())


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def convolutions():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 36, 10)
    )
    inputs = torch.randn(4, 3, 16, 16)
    return model, lambda m: F.cross_entropy(m(inputs), torch.arange(4))


def transformer():
    p = problem("attention")
    return p.model, p.loss


@pytest.mark.parametrize(("build", "limit"), [(convolutions, 3), (transformer, 5)])
def test_products_that_a_pair_costs(build, limit):
    """Counted in multiplications, of matrices and convolutions."""
    model, loss = build()
    view = ParameterView.of(model)
    vectors = torch.stack([unit(view.n, seed, torch.float32) for seed in range(3)])
    with thrice_differentiable(model):
        operator = HessianOperator(view, [gradient_graph(loss(model), view)])
        product = flops(lambda: operator.matvec(vectors[0]))
        third = flops(lambda: third_derivatives(operator, view, vectors))
    assert product < third / 3 <= limit * product
