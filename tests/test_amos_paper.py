"""The paper's experiment with AMOS: a training of seconds, and the committed page."""

from pathlib import Path

import torch
from torch import nn

from examples.amos import paper
from examples.amos.paper_page import TABLE_2, page
from lipprof.demo.text import load_text

FOLDER = Path(__file__).parent.parent / "examples" / "amos"
PRESET = paper.PRESETS["test"]


def run(name, seed=0):
    return paper.train(PRESET, name, load_text(), seed, "cpu")


def test_runs_are_paired_and_amos_without_a_switch_is_its_second_arm():
    sophia, amos = run("sophia"), run("amos-eq8-0.999")
    assert run("sophia") | {"seconds": 0} == sophia | {"seconds": 0}
    assert amos["train_loss"][0] == sophia["train_loss"][0]  # no estimate of L before the 11th
    assert len(amos["offloaded"]) == PRESET.iterations // paper.REFRESH
    assert amos["offloaded"][0] == 0


def test_dropping_the_number_of_labels_from_h_leaves_the_steps_as_they_are():
    factories = paper.optimizers(PRESET)
    weights = []
    for name, labels in (("amos", PRESET.batch * PRESET.length), ("amos-raw", 1)):
        parameter = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        optimizer = factories[name]([("w", parameter)])
        parameter.grad = torch.tensor([0.1, 2.0, -0.3])
        optimizer.observe_sampled_gradient(labels)
        optimizer.step()
        weights.append(parameter.detach().clone())
    torch.testing.assert_close(*weights)


def test_the_committed_page_follows_from_the_committed_runs():
    written = (FOLDER / "results-paper-cpu.md").read_text(encoding="utf-8")
    assert written.endswith(page(FOLDER / "results-paper-cpu.jsonl"))
    assert all(f"| {alpha:g} | h |" in written for alpha in TABLE_2)
