"""AMOS in the trainers of frameworks: it switches, and a resumed training is bitwise the same."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import lipprof
from lipprof.advice import Choice, Entry
from lipprof.optim import AMOS, Sophia
from tests.optim.problems import recommend
from tests.profiler.test_contest import decided_for
from tests.profiler.test_frameworks import (  # noqa: F401 - a fixture
    SMALL,
    data,
    fit,
    gpt2_trainer,
    library,
    lightning_callback,
    lightning_module,
    recorded,
)
from tests.profiler.test_resume import require_same_rows

pytestmark = pytest.mark.filterwarnings("ignore")

FOLLOWED = SMALL | {"dwell": 2, "rule": "quantile(share=0.5)", "hysteresis": 1.1}
STEPS = 8  # an epoch of ``data()`` in batches of 4


def amos(model, **options):
    return AMOS(
        model.named_parameters(),
        first=partial(torch.optim.AdamW, lr=0.01),
        second=partial(Sophia, lr=0.005),
        **options,
    )


def switch(optimizer, iteration):
    """Every other tensor changes sides every third iteration."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    if iteration % 3 == 0:
        names = list(optimizer.assigned)
        choices = {x: Choice((i + iteration) % 2 + 1) for i, x in enumerate(names)}
        optimizer.follow(recommend(choices, iteration))


def same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_lightning(library, tmp_path):  # noqa: F811
    class Switching(library.Callback):
        def on_train_batch_start(self, trainer, *_):
            switch(trainer.optimizers[0], trainer.global_step)

    def module():
        made = lightning_module(library, whole=True)
        made.net[2].p = 0.0  # Lightning does not restore random numbers
        made.configure_optimizers = lambda: amos(made)
        return made

    whole = module()
    trainer = fit(library, whole, tmp_path, [Switching()], max_epochs=2)
    assert len(trainer.optimizers[0].switches) > 8
    first = module()
    fit(library, first, tmp_path, [Switching()]).save_checkpoint(tmp_path / "c.ckpt")
    rest = module()
    fit(library, rest, tmp_path, [Switching()], max_epochs=2, checkpoint=tmp_path / "c.ckpt")
    same(rest.state_dict(), whole.state_dict())


def test_lightning_follows_the_live_recommendation_also_when_resumed(library, tmp_path):  # noqa: F811
    """All measurements are those of the whole."""

    def module():
        made = lightning_module(library, whole=True)
        made.net[2].p = 0.0  # Lightning does not restore random numbers
        made.configure_optimizers = lambda: amos(made)
        return made

    def train(name, **options):
        callback = lightning_callback(library)(tmp_path / name, **FOLLOWED)
        made = module()
        return made, fit(library, made, tmp_path, [callback], **options)

    whole, trainer = train("whole.h5", max_epochs=2)
    assert recorded(tmp_path / "whole.h5") == [0, 3, 6, 9, 12, 15]
    assert trainer.optimizers[0].state_dict()["amos"]["followed"]
    with lipprof.open_run(tmp_path / "whole.h5") as run:
        assert run.attrs["optimizer_class"] == "AMOS"
        assert (run["assigned"] > 0).all()
    _, first = train("parts.h5", max_epochs=1)
    first.save_checkpoint(tmp_path / "c.ckpt")
    assert torch.load(tmp_path / "c.ckpt", weights_only=True)["callbacks"]
    rest, again = train("parts.h5", max_epochs=2, checkpoint=tmp_path / "c.ckpt")
    same(rest.state_dict(), whole.state_dict())
    assert again.optimizers[0].switches == trainer.optimizers[0].switches
    require_same_rows(tmp_path / "whole.h5", tmp_path / "parts.h5")


@pytest.mark.parametrize("winner", [Choice.FIRST, Choice.SECOND])
def test_a_contest_under_lightning_trains_as_the_winner_alone(library, tmp_path, winner):  # noqa: F811
    """Lightning hands the optimizer a closure; dropout is on."""
    probe = next(iter(data()))

    class Contested(library.Callback):
        def on_train_start(self, trainer, pl_module):
            def loss(model):
                return nn.functional.mse_loss(model.net(probe[0]), probe[1])

            plan = lipprof.ContestPlan(start=2, period=2)
            kind = decided_for(Entry(winner))
            self.contest = kind(pl_module, trainer.optimizers[0], loss=loss, plan=plan)

    def trained(callbacks, **options):
        made = lightning_module(library, whole=True)
        made.configure_optimizers = lambda: amos(made, **options)
        fit(library, made, tmp_path, callbacks)
        return made

    contested = Contested()
    mine = trained([contested])
    assert contested.contest.outcome is not None
    alone = trained([], rule=f"random(share={float(winner is Choice.FIRST)})")
    same(mine.state_dict(), alone.state_dict())


def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")

    class Switching(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, *, optimizer, **_):  # noqa: ARG002
            switch(optimizer, state.global_step)

    def trainer(folder, epochs, callbacks=(), **options):
        made = gpt2_trainer(folder, [*callbacks], num_train_epochs=epochs, **options)
        optimizer = amos(made.model)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        made.optimizer, made.lr_scheduler = optimizer, schedule
        return made

    whole = trainer(tmp_path / "whole", 4, [Switching()])
    whole.train()
    first = trainer(tmp_path / "part", 2, [Switching()], save_strategy="epoch")
    first.train()
    rest = trainer(tmp_path / "part", 4, [Switching()])
    rest.train(resume_from_checkpoint=True)
    same(rest.model.state_dict(), whole.model.state_dict())


def test_transformers_follows_the_live_recommendation_also_when_resumed(tmp_path):
    pytest.importorskip("transformers")
    from lipprof.frameworks.transformers import LipprofCallback

    def trainer(folder, epochs, path, **options):
        callback = LipprofCallback(tmp_path / path, **FOLLOWED)
        made = gpt2_trainer(tmp_path / folder, [callback], num_train_epochs=epochs, **options)
        optimizer = amos(made.model)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        made.optimizer, made.lr_scheduler = optimizer, schedule
        return made

    whole = trainer("whole", 4, "whole.h5")
    whole.train()
    assert recorded(tmp_path / "whole.h5") == [0, 3, 6, 9, 12, 15]
    trainer("part", 2, "parts.h5", save_strategy="epoch").train()
    rest = trainer("part", 4, "parts.h5")
    rest.train(resume_from_checkpoint=True)
    same(rest.model.state_dict(), whole.model.state_dict())
    require_same_rows(tmp_path / "whole.h5", tmp_path / "parts.h5")


def test_transformers_without_the_file_starts_anew(tmp_path, caplog):
    pytest.importorskip("transformers")
    from lipprof.frameworks.transformers import LipprofCallback

    for epochs in (1, 2):
        callback = LipprofCallback(tmp_path / "run.h5", **SMALL)
        trainer = gpt2_trainer(
            tmp_path / "part", [callback], num_train_epochs=epochs, save_strategy="epoch"
        )
        trainer.train(resume_from_checkpoint=epochs > 1)
        (tmp_path / "part" / "checkpoint-4" / "lipprof.pt").write_bytes(b"damaged")
    assert "anew at iteration 4" in caplog.text
    assert recorded(tmp_path / "run.h5") == [0, 3, 6]


def test_accelerate(tmp_path):
    accelerate = pytest.importorskip("accelerate")

    def run(epochs, load=None, save=None):
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        model, optimizer, loader = accelerator.prepare(model, amos(model), DataLoader(data(), 4))
        iteration = 0
        if load is not None:
            accelerator.load_state(load)
            iteration = STEPS // 2
        for _ in range(epochs):
            for x, y in loader:
                switch(optimizer, iteration)
                with accelerator.accumulate(model):
                    accelerator.backward(nn.functional.mse_loss(model(x), y))
                    optimizer.step()
                    optimizer.zero_grad()
                iteration += accelerator.sync_gradients
        if save is not None:
            accelerator.save_state(save)
        return model.state_dict()

    whole = run(2)
    run(1, save=tmp_path / "state")
    same(run(1, load=tmp_path / "state"), whole)
