"""Best of both: every task under every strategy, paired seeds, what is counted, and the page."""

import pytest
import torch

import lipprof
from examples.amos import run_log
from examples.amos.best_of_both import run_all
from examples.amos.presets import LONGER, PRESETS, RATES, STRATEGIES
from examples.amos.results import INVERTED, Results, Where, page
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
    names = ("first", "second", "contest", "calibrated", "random", "newton-safe")
    cells = [Cell("muon", "good", name, 0, "test") for name in names]
    path = tmp_path / "results.jsonl"
    run_all(cells, path, "cpu")
    runs = {run["strategy"]: run for run in run_log.read(path).values()}
    assert runs.keys() == set(names)
    assert runs["first"]["second_share"] == 0
    assert runs["second"]["second_share"] == 1
    plan, preset = PRESETS["gpt"]["test"].plan, PRESETS["gpt"]["test"]
    assert runs["contest"]["gradients"] == plan.start + 2 * plan.period
    assert runs["calibrated"]["gradients"] > runs["contest"]["gradients"]
    probes = lipprof.Settings().diagonal_probes
    assert runs["newton-safe"]["hvps"] == probes * preset.steps // preset.every
    assert 0 < runs["newton-safe"]["decision_s"] < runs["newton-safe"]["seconds"]
    text = page(path)
    winner = runs["contest"]["winner"]
    assert runs["contest"]["validation"] == runs[winner]["validation"], "bit for bit"
    loser = {"first": "second", "second": "first"}[winner]
    assert "to inverted (1)" in text
    assert Results(path).losses(Where("adamw", "muon", "good"), INVERTED) == {
        0: runs[loser]["validation"]
    }
    assert f"{runs['contest']['validation']:.3f}" in text
    assert all(f"| {name} " in text for name in names)


def test_what_was_run_is_not_run_again(tmp_path):
    path, cell = tmp_path / "results.jsonl", Cell("muon", "good", "first", 0, "test")
    run_log.append(path, cell.name, {"validation": 1.0})
    run_all([cell], path, "cpu")
    assert run_log.read(path) == {cell.name: {"validation": 1.0}}


def test_more_steps_for_the_first_arm_stand_beside_the_time_that_a_trial_takes(tmp_path):
    path = tmp_path / "results.jsonl"
    cells = [
        Cell("muon", "good", "first", 0, "test"),
        Cell("muon", "1.5", LONGER, 0, "test"),
        Cell("muon", "good", "contest", 0, "test"),
    ]
    assert cells[1].size.steps == 18
    run_all(cells, path, "cpu")
    told = page(path).split("## Equal time")[1].split("##")[0]
    alone, longer, contest = (run_log.read(path)[cell.name] for cell in cells)
    assert longer["lr"] == alone["lr"]
    for name, run in (("1.5 times the steps", longer), ("muon, a trial", contest)):
        ratio, loss = run["cpu_s"] / alone["cpu_s"], run["validation"]
        assert f"{name} | {ratio:.2f} | {loss:.3f}" in told


def test_what_fails_is_said_to_fail(tmp_path):
    losses = {"first": 2.0, "second": 1.5, "contest": 1.53, "random": 1.9}
    for strategy, loss in losses.items():
        cell = Cell("muon", "good", strategy, 0)
        result = {
            "arm": cell.arm, "level": cell.level, "strategy": strategy, "seed": 0, "preset": "cpu",
            "task": "gpt", "first": "adamw", "parameters": 1, "data": "text", "validation": loss,
            "gradients": 80, "hvps": 0, "seconds": 10.0, "cpu_s": None, "decision_s": 2.0,
            "winner": "second", "reason": "in a trial, the loss went to 2 by the first",
        }  # fmt: skip
        run_log.append(tmp_path / "results.jsonl", cell.name, result)
    text = page(tmp_path / "results.jsonl")
    assert "+0.030 to second (1): **fails**" in text
    assert "-0.370 to random (1): holds" in text
    assert "25%: **fails**" in text


def test_learning_rates_are_tuned_for_all_arms_of_a_task():
    for task in PRESETS:
        assert {"adamw", "muon"} <= RATES[task].keys()
    assert {"first", "second", "contest"} <= STRATEGIES.keys()
