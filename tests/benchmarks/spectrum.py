"""Eigenpairs to a residual, cold: seconds, products, and what the residuals really are."""

import gc

import torch

from tests.benchmarks.engines import ENGINES, Product, plain_product, reason_of
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
from tests.benchmarks.solvers import OURS, TOL, Found, contestants, judge
from tests.benchmarks.timing import Summary, ratio, seconds_of

TOP_TASKS = ((5, 0), (1, 0))
TASKS = {"resnet": TOP_TASKS}  # to set up the peers for both ends would take it hours
BOTH_ENDS = ((5, 5), *TOP_TASKS)
QUICK_TASKS = ((2, 2), (2, 0), (1, 0))


def measure(setting: Setting, subject: str) -> list[Row]:
    problem = PROBLEMS[subject](setting.data, setting.device, quick=setting.quick)
    repetitions = 1 if setting.quick or subject == "resnet" else 3
    rows = []
    for top, bottom in QUICK_TASKS if setting.quick else TASKS.get(subject, BOTH_ENDS):
        setting.say(f"spectrum: {subject}, {top} + {bottom} pairs, {problem.description}")
        for row in _task(problem, top, bottom, repetitions, setting):
            task = {"task": f"{top} + {bottom}" if bottom else f"top {top}"}
            rows.append({"problem": subject, "data": problem.description, **task, **row})
    return rows


def _task(problem: Problem, top: int, bottom: int, repetitions: int, setting: Setting) -> list[Row]:
    rows: dict[str, Row] = {}
    solvers = {}
    for name, prepare in contestants(
        problem, {engine.name: engine for engine in ENGINES}, top, bottom
    ).items():
        rows[name] = {"method": name}
        setting.say(f"  preparing {name}")
        try:
            solvers[name] = prepare()
        except Exception as error:  # of any kind: one that does not apply says so
            rows[name]["note"] = reason_of(error)
            setting.say(f"  {name} {rows[name]['note']}")
    samples: dict[str, list[float]] = {name: [] for name in solvers}
    found: dict[str, Found] = {}
    for _ in range(repetitions):
        for name, solve in list(solvers.items()):
            try:
                elapsed, found[name] = seconds_of(solve)
            except Exception as error:  # likewise
                rows[name]["note"] = reason_of(error)
                del solvers[name], samples[name]
                continue
            samples[name].append(elapsed)
            setting.say(f"  {name}: {elapsed:.2f} s, {found[name].products} products")
    truth = plain_product(problem)
    best = _extremes([found[name] for name in solvers])
    for name in solvers:
        judged = judge(found[name], truth)
        rows[name] |= {
            "seconds": Summary.of(samples[name]).median,
            "products": found[name].products,
            "residual": judged.worst,
            "reported": judged.reported,
            "gap": _gap(found[name], best),
        }
        if OURS in samples:
            rows[name]["ratio"] = ratio(samples[name], samples[OURS]).as_dict()
        if not judged.meets:
            rows[name]["note"] = f"misses {TOL:.0e}"
            if "curvlinops" in name and judge(found[name], theirs(problem)).meets:
                rows[name]["note"] += "; meets it for the matrix that curvlinops computes"
    del truth
    gc.collect()
    return list(rows.values())


def theirs(problem: Problem) -> Product:
    """The product that curvlinops computes."""
    return next(engine for engine in ENGINES if engine.name == "curvlinops").ready(problem.copied())


def _extremes(found: list[Found]) -> torch.Tensor:
    """The outermost value that any contestant has found, place by place.

    Ritz values lie within the spectrum, so that the outermost one is the nearest to the truth, and
    whoever overlooked an eigenvalue stands out.
    """
    stacked, top = torch.stack([one.values for one in found]), found[0].top
    return torch.cat([stacked[:, :top].amax(0), stacked[:, top:].amin(0)])


def _gap(found: Found, best: torch.Tensor) -> float:
    ends = torch.cat([best[:1].expand(found.top), best[-1:].expand(len(best) - found.top)])
    return float(((found.values - best).abs() / ends.abs()).max())


SECTION = Section(
    name="spectrum",
    title="Eigenpairs, cold",
    legend=(
        "To a residual within 1e-3 of the extreme eigenvalue of the same end. Ratio: seconds over "
        f"those of `{OURS}` in the same repetition. `{OURS}` includes whatever it prepares; "
        '"within a run" has its trace at hand, as all measurements of a run but the first do. The '
        "peers' settings (tolerance and basis of eigsh, steps of hessian-eigenthings) are the "
        "cheapest that meet the criterion, found beforehand and not timed. Residual: the worst, "
        "by one independent product per pair. Reported: the same as the method has it. Gap: the "
        "largest distance of a value from the outermost one that any method found in its place, "
        "over the extreme of its end."
    ),
    columns=(
        Column("problem", "problem"),
        Column("task", "pairs"),
        Column("method", "method"),
        Column("ratio", "ratio", spread),
        Column("seconds", "seconds", seconds),
        Column("products", "HVPs"),
        Column("residual", "residual", scientific),
        Column("reported", "reported", scientific),
        Column("gap", "gap", scientific),
        Column("note", "note"),
    ),
    subjects=tuple(PROBLEMS),
    measure=measure,
)
