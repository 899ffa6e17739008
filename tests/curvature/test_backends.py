"""Which backend is chosen and why, that the choice does not change results, and memory."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lipprof.curvature import ParameterView, twice_differentiable, undisturbed
from lipprof.curvature.hessian import backends as module
from lipprof.curvature.hessian.backends import ClosureHessian
from lipprof.curvature.hessian.footprint import retained_footprint, traced_footprint
from lipprof.curvature.hessian.traced import NotTraceableError, TracedHessian, TracedHessianOperator
from lipprof.curvature.loss.functional import FunctionalLoss
from lipprof.curvature.loss.losses import ProbeLoss
from lipprof.demo.gpt import CharGPT
from lipprof.errors import ConfigError, NotDifferentiableError
from lipprof.linalg import materialise
from tests.models import problem


def backend(p, **options):
    return closure_of(p, p.loss, **options)


def closure_of(p, loss, **options):
    return ClosureHessian(ProbeLoss(p.model, loss), ParameterView.of(p.model), **options)


def operator(hessian, model):
    with undisturbed(model, training=False), twice_differentiable(model):
        return hessian.operator()


@pytest.fixture
def eager(monkeypatch):
    """Tracing always looks worthwhile, however few and quick the products are."""
    monkeypatch.setattr(module, "WORTHWHILE_S", 0.0)
    monkeypatch.setattr(module, "TRACE_PER_DRY_RUN", 0.0)
    monkeypatch.setattr(module, "FIRST_TRACE_S", 0.0)


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_backends_agree(kind):
    p = problem(kind, torch.float64, count=10)
    matrices = {}
    for name in ("retained", "traced"):
        hessian = backend(p, backend=name)
        found = operator(hessian, p.model)
        assert hessian.choice.name == name
        matrices[name] = materialise(found), found.gradient(), torch.tensor(found.loss)
    torch.testing.assert_close(matrices["traced"], matrices["retained"], rtol=1e-10, atol=1e-14)


def test_backends_agree_under_autocast():
    """Half precision is left as it is: fused sums would round otherwise."""
    p = problem("attention")
    p.model.eval()
    vector = torch.randn(ParameterView.of(p.model).n)

    def loss(m):
        with torch.autocast("cpu", torch.bfloat16):
            return p.loss(m)

    products = []
    for name in ("retained", "traced"):
        hessian = closure_of(p, loss, backend=name)
        products.append(operator(hessian, p.model).matvec(vector))
    torch.testing.assert_close(*products, rtol=1e-5, atol=1e-6)


def test_few_quick_products_are_not_traced():
    hessian = backend(problem("mlp"), planned=10)
    operator(hessian, nn.Module())
    assert hessian.choice.name == "retained"
    assert "10 products" in hessian.choice.reason
    assert hessian.choice.trace_seconds == 0


def prefer(monkeypatch, name):
    """Let the clock of each backend's products say that this one is faster."""
    sample = ClosureHessian._sample

    def timed(self, sampled, found):
        product = sample(self, sampled, found)
        self._seconds[sampled] = 1.0 if sampled == name else 2.0
        return product

    monkeypatch.setattr(ClosureHessian, "_sample", timed)


@pytest.mark.parametrize("name", ["retained", "traced"])
def test_the_faster_one_is_chosen_once(eager, monkeypatch, name):
    p = problem("mlp")
    prefer(monkeypatch, name)
    hessian = backend(p)
    operator(hessian, p.model)
    choice = hessian.choice
    assert choice.name == name
    assert choice.seconds_per_matvec == {"retained": 2.0, "traced": 2.0, name: 1.0}
    assert choice.bytes.keys() == {"retained", "traced"}
    assert choice.trace_seconds > 0
    operator(hessian, p.model)
    assert hessian.choice is choice


def test_a_wrong_trace_is_not_used(eager, monkeypatch):
    p = problem("mlp")
    prefer(monkeypatch, "traced")
    matvec = TracedHessianOperator.matvec
    monkeypatch.setattr(TracedHessianOperator, "matvec", lambda self, v: 1.01 * matvec(self, v))
    hessian = backend(p)
    operator(hessian, p.model)
    assert hessian.choice.name == "retained"
    assert "another Hessian-vector product" in hessian.choice.reason


def test_what_cannot_be_traced_stays_retained(eager):
    p = problem("mlp")
    hessian = closure_of(p, lambda m: p.loss(m) * (2 if p.loss(m).item() > 0 else 1))
    assert operator(hessian, p.model).loss > 0
    assert hessian.choice.name == "retained"
    assert "without data" in hessian.choice.reason


def test_a_stale_trace_is_left_for_good(eager, monkeypatch, caplog):
    p, factor = problem("mlp"), [1.0]
    prefer(monkeypatch, "traced")
    hessian = closure_of(p, lambda m: p.loss(m) * factor[0])
    first = operator(hessian, p.model)
    assert hessian.choice.name == "traced"
    vector = torch.ones(first.n)
    for factor[0] in (2.0, 3.0):
        product = operator(hessian, p.model).matvec(vector)
        torch.testing.assert_close(product, factor[0] * first.matvec(vector))
    assert hessian.choice.name == "retained"
    assert "baked in" in hessian.choice.reason
    assert caplog.text.count("baked in") == 1


@pytest.mark.parametrize("kind", ["mlp", pytest.param("attention", marks=pytest.mark.slow)])
def test_one_microbatch_at_a_time_where_all_do_not_fit(kind):
    p = problem(kind, torch.float64, count=24)
    probe = ProbeLoss(p.model, p.loss, [p.batch(0, 6), p.batch(1, 6), p.batch(2, 12)])
    view = ParameterView.of(p.model)
    free = ClosureHessian(probe, view, backend="retained", memory_limit=10**12)
    whole = operator(free, p.model)
    assert free.choice.name == "retained"
    sizes = free.choice.bytes
    assert sizes["recomputed"] < sizes["retained"]
    tight = ClosureHessian(probe, view, memory_limit=sizes["recomputed"])
    with undisturbed(p.model, training=False), twice_differentiable(p.model):
        one = tight.operator()
        assert tight.choice.name == "recomputed"
        torch.testing.assert_close(one.gradient(), whole.gradient())
        torch.testing.assert_close(materialise(one), materialise(whole), rtol=1e-10, atol=1e-14)
        assert one.loss == pytest.approx(whole.loss)


def test_a_limit_that_cannot_be_foreseen_is_refused():
    p = problem("mlp")
    hessian = closure_of(p, lambda m: p.loss(m) * p.loss(m).item(), memory_limit=10**9)
    with pytest.raises(ConfigError, match="memory_limit= cannot be kept.*without data"):
        operator(hessian, p.model)


def test_insisting_on_a_trace_raises():
    p = problem("mlp")
    hessian = closure_of(p, lambda m: p.loss(m) * p.loss(m).item(), backend="traced")
    with pytest.raises(NotTraceableError, match="cannot be traced"):
        operator(hessian, p.model)


def test_errors_of_the_loss_are_its_own():
    model = nn.Linear(2, 2)
    hessian = ClosureHessian(
        ProbeLoss(model, lambda m: m(torch.ones(1, 2))), ParameterView.of(model)
    )
    with pytest.raises(NotDifferentiableError, match="one element"):
        operator(hessian, model)


def test_the_memory_limit_decides(eager):
    p = problem("mlp")
    free = backend(p)
    operator(free, p.model)
    small, large = sorted(free.choice.bytes, key=free.choice.bytes.__getitem__)
    assert free.choice.bytes[small] < free.choice.bytes[large]
    between = sum(free.choice.bytes.values()) // 2
    tight = backend(p, memory_limit=between)
    operator(tight, p.model)
    assert tight.choice.name == small
    with pytest.raises(ConfigError, match=r"the 0\.0 MB that.*retained .* MB, traced .* MB"):
        operator(backend(p, memory_limit=100), p.model)


def measured(build):
    """Bytes held and at the peak, from the allocator's own events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        operator = build()
    sizes = [e.nbytes() for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = torch.tensor(sizes).cumsum(0)
    del operator
    return int(live[-1]), int(live.max())


@pytest.mark.parametrize("kind", ["cnn", "gpt"])
def test_memory_is_predicted(kind):
    if kind == "gpt":
        model = CharGPT(20, length=32, layers=1, width=32, heads=2)
        tokens = torch.randint(0, 20, (8, 33))
        batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

        def loss(m, batch):
            return m.loss(batch)

    else:
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        )
        batch = torch.randn(16, 3, 20, 20)

        def loss(m, batch):
            return m(batch).square().mean()

    view = ParameterView.of(model)
    probe = ProbeLoss(model, loss, [batch, batch])
    microbatches = probe.microbatches()
    functional = FunctionalLoss(model, loss, view)
    traces = TracedHessian(functional)
    vector = torch.ones(view.n)
    with undisturbed(model), twice_differentiable(model):
        traces.trace(microbatches[0])
        for name, predicted in {
            "retained": retained_footprint(functional, microbatches),
            "traced": traced_footprint(traces, microbatches),
        }.items():
            hessian = ClosureHessian(probe, view, backend=name)
            hessian._trace = traces
            hessian.choice = module.BackendChoice(name=name, reason="")

            def build(hessian=hessian):
                operator = hessian.operator()
                operator.matvec(vector)
                return operator

            held, peak = measured(build)
            assert predicted.held == pytest.approx(held, rel=0.02), name
            assert predicted.peak == pytest.approx(peak, rel=0.1), name
