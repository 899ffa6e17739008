"""Adapters in small real trainings with the real libraries; bitwise the same as without."""

import importlib
import logging
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lipprof

pytestmark = pytest.mark.filterwarnings("ignore")

try:
    import torchvision  # noqa: F401 - built for another torch it cannot be imported, and these would
except (ImportError, RuntimeError):
    sys.modules["torchvision"] = None

SMALL = {"every": 3, "top": 1, "bottom": 1, "tol": 0.1, "diagonal_probes": 2}


def data(count=32):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 4, generator=generator)
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def recorded(path):
    with lipprof.open_run(path) as run:
        assert run.finished
        assert (run["status"] < 2).all(), run["reason"]
        return run["iteration"].tolist()


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def library(request):
    pytest.importorskip(request.param.partition(".")[0])
    logging.getLogger(request.param).setLevel(logging.ERROR)
    return importlib.import_module(request.param)


def lightning_module(library, whole):
    class Module(library.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 1))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            x, y = batch
            return nn.functional.mse_loss(self(x) if whole else self.net(x), y)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    torch.manual_seed(0)
    return Module()


def fit(library, module, folder, callbacks, max_epochs=1, checkpoint=None, **options):
    trainer = library.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=callbacks,
        **options,
    )
    trainer.fit(module, DataLoader(data(), 4), ckpt_path=checkpoint)
    return trainer


def lightning_callback(library):
    """The adapter's module, built anew over the library that is in use."""
    from lipprof.frameworks import lightning

    return importlib.reload(lightning).LipprofCallback


@pytest.mark.parametrize("whole", [True, False], ids=["forward", "inner"])
def test_lightning(library, whole, tmp_path):
    bare = lightning_module(library, whole)
    fit(library, bare, tmp_path, [])
    model = lightning_module(library, whole)
    callback = lightning_callback(library)(tmp_path / "run.h5", **SMALL)
    trainer = fit(library, model, tmp_path, [callback])
    torch.testing.assert_close(model.state_dict(), bare.state_dict(), rtol=0, atol=0)
    assert recorded(tmp_path / "run.h5") == [0, 3, 6]
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    callback = lightning_callback(library)(tmp_path / "run.h5", **SMALL)
    fit(library, model, tmp_path, [callback], max_epochs=2, checkpoint=tmp_path / "c.ckpt")
    assert recorded(tmp_path / "run.h5") == [0, 3, 6, 9, 12, 15]


def test_lightning_accumulation_and_a_probe(library, tmp_path):
    inputs, targets = data().tensors
    module = lightning_module(library, whole=True)
    make = lightning_callback(library)
    step = make(tmp_path / "step.h5", **(SMALL | {"every": 1}))
    fit(library, module, tmp_path, [step], accumulate_grad_batches=4)
    assert recorded(tmp_path / "step.h5") == [0, 1]
    probe = make(
        tmp_path / "probe.h5",
        loss=lambda m: nn.functional.mse_loss(m(inputs), targets),
        **(SMALL | {"every": 1}),
    )
    fit(library, lightning_module(library, whole=True), tmp_path, [probe], max_steps=2)
    assert recorded(tmp_path / "probe.h5") == [0, 1]


def test_lightning_error_finishes_the_file(library, tmp_path):
    module = lightning_module(library, whole=True)
    module.on_train_batch_end = lambda *_: 1 / 0
    callback = lightning_callback(library)(tmp_path / "run.h5", **SMALL)
    with pytest.raises(ZeroDivisionError):
        fit(library, module, tmp_path, [callback])
    assert recorded(tmp_path / "run.h5") == [0]


def gpt2_trainer(folder, callbacks, **options):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.GPT2Config(
        vocab_size=13, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    tokens = torch.randint(0, 13, (16, 6), generator=torch.Generator().manual_seed(1))
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1000,
        **options,
    )
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    return transformers.Trainer(model, arguments, train_dataset=rows, callbacks=callbacks)


def test_transformers(tmp_path):
    bare = gpt2_trainer(tmp_path / "bare", [], num_train_epochs=2)
    from lipprof.frameworks.transformers import LipprofCallback

    bare.train()
    callback = LipprofCallback(tmp_path / "run.h5", **SMALL)
    trainer = gpt2_trainer(
        tmp_path / "profiled", [callback], num_train_epochs=2, save_strategy="epoch"
    )
    trainer.train()
    torch.testing.assert_close(trainer.model.state_dict(), bare.model.state_dict(), rtol=0, atol=0)
    assert recorded(tmp_path / "run.h5") == [0, 3, 6]
    callback = LipprofCallback(tmp_path / "run.h5", **SMALL)
    resumed = gpt2_trainer(tmp_path / "profiled", [callback], num_train_epochs=4)
    resumed.train(resume_from_checkpoint=True)
    assert recorded(tmp_path / "run.h5") == [0, 3, 6, 9, 12, 15]


def accelerated(folder, attach, load=None):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data(), 4))
    profiler = attach(accelerator, model, optimizer)
    if load is not None:
        accelerator.load_state(load)
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.mse_loss(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
    if profiler is not None:
        accelerator.save_state(folder / "state")
        profiler.close()
    return model.state_dict()


def test_accelerate(tmp_path):
    pytest.importorskip("accelerate")
    from lipprof.frameworks import accelerate as adapter

    def attach(accelerator, model, optimizer):
        return adapter.attach(
            accelerator, model, optimizer, tmp_path / "run.h5", resume=True, **SMALL
        )

    bare = accelerated(tmp_path, lambda *_: None)
    torch.testing.assert_close(accelerated(tmp_path, attach), bare, rtol=0, atol=0)
    assert recorded(tmp_path / "run.h5") == [0, 3]
    accelerated(tmp_path, attach, load=tmp_path / "state")
    assert recorded(tmp_path / "run.h5") == [0, 3, 6]
