"""Best of both: every task under every strategy, paired seeds, what is counted, and the page."""

import json

import pytest
import torch

import lipprof
from examples.amos.best_of_both import run_all
from examples.amos.presets import PRESETS, RATES, STRATEGIES
from examples.amos.results import page
from examples.amos.training import Cell, Run
from examples.lipschitz.data import cifar10
from lipprof.errors import MissingExtraError


def has_images():
    try:
        cifar10(download=False)
    except MissingExtraError:
        return False
    return True


TASKS = [
    task
    if task == "gpt"
    else pytest.param(task, marks=pytest.mark.skipif(not has_images(), reason="no CIFAR-10"))
    for task in PRESETS
]


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_fixes_all_but_the_strategy(task):
    one, other = (
        Run(Cell("muon", level, strategy, 1, "test", task))
        for level, strategy in (("good", "first"), ("4x low", "contest"))
    )
    for mine, theirs in zip(
        one.task.model.parameters(), other.task.model.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)
    for _ in range(2):
        losses = [run.task.loss(one.task.model, run.task.batch()) for run in (one, other)]
        assert losses[0] == losses[1]
    assert one.probe_loss(one.task.model) == other.probe_loss(one.task.model)


@pytest.mark.parametrize("task", TASKS)
def test_muon_gets_matrices_and_the_head_stays(task):
    run = Run(Cell("muon", "good", "second", 0, "test", task))
    run.optimizer.zero_grad()
    run.task.loss(run.task.model, run.task.batch()).backward()
    run.optimizer.step()
    taken = run.optimizer.optimizers[1].param_groups[0]["params"]
    assert taken
    assert all(tensor.ndim == 2 for tensor in taken)
    plan = run.optimizer.plan()
    last = [name for name, p in run.task.model.named_parameters() if p.ndim >= 2][-1]
    assert plan[last] != "may switch"


def test_runs_are_written_with_their_cost_and_make_a_page(tmp_path):
    names = ("first", "second", "contest", "inverted", "random", "newton-safe")
    cells = [Cell("muon", "good", name, 0, "test") for name in names]
    run_all(cells, tmp_path, "cpu")
    runs = {run["strategy"]: run for run in (json.loads(p.read_text()) for p in tmp_path.iterdir())}
    assert runs.keys() == set(names)
    assert runs["first"]["second_share"] == 0
    assert runs["second"]["second_share"] == 1
    plan, preset = PRESETS["gpt"]["test"].plan, PRESETS["gpt"]["test"]
    assert runs["contest"]["gradients"] == plan.period
    probes = lipprof.Settings().diagonal_probes
    assert runs["newton-safe"]["hvps"] == probes * preset.steps // preset.every
    assert 0 < runs["newton-safe"]["decision_s"] < runs["newton-safe"]["seconds"]
    assert {runs["contest"]["second_share"], runs["inverted"]["second_share"]} == {0, 1}
    text = page(tmp_path)
    assert f"{runs['contest']['validation']:.3f}" in text
    assert all(f"| {name} " in text for name in names)


def test_what_fails_is_said_to_fail(tmp_path):
    losses = {"first": 2.0, "second": 1.5, "contest": 1.53, "random": 1.9}
    for strategy, loss in losses.items():
        cell = Cell("muon", "good", strategy, 0)
        result = {
            "arm": cell.arm, "level": cell.level, "strategy": strategy, "seed": 0, "preset": "cpu",
            "task": "gpt", "first": "adamw", "parameters": 1, "data": "text", "validation": loss,
            "gradients": 80, "hvps": 0, "seconds": 10.0, "decision_s": 2.0, "decisions": [],
        }  # fmt: skip
        (tmp_path / cell.file).write_text(json.dumps(result))
    text = page(tmp_path)
    assert "+0.030 to second (1): **fails**" in text
    assert "-0.370 to random (1): holds" in text
    assert "25%: **fails**" in text


def test_learning_rates_are_tuned_for_all_arms_of_a_task():
    for task in PRESETS:
        assert {"adamw", "muon"} <= RATES[task].keys()
    assert {"first", "second", "contest"} <= STRATEGIES.keys()
