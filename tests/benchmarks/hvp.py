"""What a Hessian-vector product costs, in gradients."""

import gc

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.benchmarks.engines import (
    ENGINES,
    Product,
    gradient,
    plain_gauss_newton,
    plain_product,
    reason_of,
)
from tests.benchmarks.problems import PROBLEMS, Problem
from tests.benchmarks.sections import (
    Column,
    Row,
    Section,
    Setting,
    scientific,
    seconds,
    spread,
)
from tests.benchmarks.timing import Summary, interleaved, ratio, seconds_of

PLAIN, STOCK = "gradient", "gradient, the model's own attention kernel"


def measure(setting: Setting, subject: str) -> list[Row]:
    problem = PROBLEMS[subject](setting.data, setting.device, quick=setting.quick)
    setting.say(f"hvp: {subject}, {problem.description}")
    vector = torch.randn(problem.n, generator=torch.Generator().manual_seed(0)).to(setting.device)
    truth = truths(problem, vector)
    rows: dict[str, Row] = {PLAIN: {"method": PLAIN}}
    calls = {PLAIN: lambda: _plain_gradient(problem)}
    if subject == "gpt":
        rows[STOCK] = {"method": STOCK}
        calls[STOCK] = lambda: gradient(problem)
    for engine in ENGINES:
        rows[engine.name] = row = Row(method=engine.name)
        try:
            row["build_s"], product = seconds_of(lambda e=engine: e.ready(problem.copied()))
            row["error"] = _error(product(vector), truth[engine.matrix])
        except Exception as error:  # of any kind: an engine that does not apply says so
            row["note"] = reason_of(error)
            continue
        calls[engine.name] = lambda p=product: p(vector)
    samples = interleaved(calls, setting.repetitions(5 if subject == "resnet" else 15))
    for name, values in samples.items():
        rows[name]["gradients"] = ratio(values, samples[PLAIN]).as_dict()
        rows[name]["seconds"] = Summary.of(values).median
    gc.collect()
    return [{"problem": subject, "data": problem.description, **row} for row in rows.values()]


def truths(problem: Problem, vector: torch.Tensor) -> dict[str, torch.Tensor]:
    """Both matrices' products, in float64, by code that no contestant shares."""
    exact = problem.copied(torch.float64)
    products: dict[str, Product] = {
        "Hessian": plain_product(exact),
        "GGN": plain_gauss_newton(exact),
    }
    return {name: product(vector.double()) for name, product in products.items()}


def _plain_gradient(problem: Problem) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return gradient(problem)


def _error(product: torch.Tensor, truth: torch.Tensor) -> float:
    return float((product.double() - truth).norm() / truth.norm())


SECTION = Section(
    name="hvp",
    title="One Hessian-vector product",
    legend=(
        "In gradients: seconds over those of loss and gradient on the same batch in the same "
        "repetition, median and quartiles; under the plain attention kernel, which exact products "
        "need. Error: of one product with a random vector against double backward in float64 (of "
        "the Gauss-Newton rows: against forward mode and the closed form of the softmax). Build: "
        "seconds before the first product; of a trace, with its checks and samples."
    ),
    columns=(
        Column("problem", "problem"),
        Column("method", "method"),
        Column("gradients", "gradients", spread),
        Column("seconds", "seconds", seconds),
        Column("error", "error", scientific),
        Column("build_s", "build", seconds),
        Column("note", "note"),
    ),
    subjects=tuple(PROBLEMS),
    measure=measure,
)
