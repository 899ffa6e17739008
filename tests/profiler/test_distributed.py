"""Rank 0 of two processes is profiled; the other does not notice, nor do the parameters."""

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import lipprof
from lipprof.curvature import check_replica, process_count
from lipprof.errors import AttachError
from lipprof.optim import AMOS, Sophia

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

SETTINGS = {"every": 2, "top": 2, "bottom": 1, "tol": 1e-3, "diagonal_probes": 2}
STEPS = 5


def batch(rank, iteration):
    generator = torch.Generator().manual_seed(100 * rank + iteration)
    inputs = torch.randn(8, 5, generator=generator)
    return inputs, torch.randint(0, 3, (8,), generator=generator)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


class Gathering(nn.Module):
    """Its forward takes all ranks, as that of a contrastive loss over the whole batch."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, inputs):
        outputs = self.net(inputs)
        mean = outputs.detach().mean()
        distributed.all_reduce(mean)
        return outputs - mean


def train(rank, attach=None, model=network, accumulate=1):
    """Parameters before each step, and those at the end."""
    ddp = DistributedDataParallel(model())
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05, momentum=0.9)
    profiler = attach(ddp, optimizer) if attach and rank == 0 else None
    path = []
    for iteration in range(STEPS):
        optimizer.zero_grad()
        for micro in range(accumulate):
            ddp.require_backward_grad_sync = micro == accumulate - 1  # as ``no_sync`` does
            inputs, targets = batch(rank, iteration * accumulate + micro)
            (F.cross_entropy(ddp(inputs), targets) / accumulate).backward()
        path.append([p.detach().clone() for p in ddp.parameters()])
        optimizer.step()
    if profiler is not None:
        profiler.close()
    return [*path, [p.detach().clone() for p in ddp.parameters()]], dict(ddp.named_buffers())


def refusal(*arguments, **keywords):
    try:
        lipprof.attach(*arguments, **keywords)
    except AttachError as error:
        return str(error)
    return ""


def work(rank, folder):
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    found = {"bare": train(rank), "bare accumulated": train(rank, accumulate=2)}
    found["bare gathering"] = train(rank, model=Gathering)

    def attached(name, **options):
        return lambda m, o: lipprof.attach(m, o, f"{folder}/{name}.h5", **(SETTINGS | options))

    def closure(model):
        return F.cross_entropy(model(batch(0, 9)[0]), batch(0, 9)[1])

    found["replay"] = train(rank, attached("replay"))
    found["closure"] = train(rank, attached("closure", loss=closure))
    found["accumulated"] = train(rank, attached("accumulated"), accumulate=2)
    found["gathering"] = train(rank, attached("gathering"), model=Gathering)
    ddp = DistributedDataParallel(network())
    plain = torch.optim.SGD(ddp.parameters(), lr=0.1)
    amos = AMOS(ddp.named_parameters(), partial(torch.optim.SGD, lr=0.1), Sophia)
    static = DistributedDataParallel(network(), static_graph=True)
    found["rank"] = refusal(ddp, plain, f"{folder}/none.h5", **SETTINGS) if rank else ""
    found["AMOS"] = refusal(ddp, amos, f"{folder}/none.h5", **SETTINGS)
    own = torch.optim.SGD(static.parameters(), lr=0.1)
    found["static"] = refusal(static, own, f"{folder}/none.h5", **SETTINGS)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(
    ("profiled", "bare"),
    [
        ("replay", "bare"),
        ("closure", "bare"),
        ("accumulated", "bare accumulated"),
        ("gathering", "bare gathering"),
    ],
)
def test_training_is_the_same_on_every_rank(profiled, bare, ranks):
    for found in ranks[1]:
        torch.testing.assert_close(found[profiled], found[bare], rtol=0, atol=0)
    one, two = (found[profiled][0][-1] for found in ranks[1])
    assert all(map(torch.equal, one, two))


def dense_eigenvalues(parameters, batches, training):
    """Of the mean loss, in float64, by another way of differentiation than the profiler's."""
    model = network().double().train(training)
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in parameters]
    flat = torch.cat([p.flatten() for p in parameters]).double()

    def loss(theta):
        parts = [x.view(p.shape) for x, p in zip(theta.split(sizes), parameters, strict=True)]
        state = dict(zip(names, parts, strict=True))
        if training:  # statistics of the batch; the running ones are written to, and not read
            state |= {k: v.clone() for k, v in model.named_buffers()}
        losses = [
            F.cross_entropy(torch.func.functional_call(model, state, (x.double(),)), y)
            for x, y in batches
        ]
        return sum(losses) / len(losses)

    hessian = torch.autograd.functional.hessian(loss, flat)
    return torch.linalg.eigvalsh(hessian).flip(0).numpy()


@pytest.mark.parametrize(("name", "micro"), [("replay", 1), ("accumulated", 2)])
def test_the_eigenvalues_are_those_of_rank_0s_batch_in_one_process(name, micro, ranks):
    folder, (found, _) = ranks
    with lipprof.open_run(folder / f"{name}.h5") as run:
        assert run["iteration"].tolist() == [0, 2, 4]
        assert (run["status"] == 0).all(), run["reason"]
        assert (run["source"] == lipprof.record.SOURCES.index("replay")).all()
        assert run.attrs["probe"] == "rank 0's part of the training step's own batch"
        for row, iteration in enumerate(run["iteration"].tolist()):
            batches = [batch(0, iteration * micro + i) for i in range(micro)]
            values = dense_eigenvalues(found[name][0][iteration], batches, training=True)
            np.testing.assert_allclose(
                run["eigenvalue"][row], values[[0, 1, -1]], rtol=1e-3, atol=1e-4
            )


def test_a_closure_is_evaluated_on_the_replica_alone(ranks):
    with lipprof.open_run(ranks[0] / "closure.h5") as run:
        assert (run["status"] == 0).all(), run["reason"]


def test_a_forward_that_communicates_is_found_before_it_is_replayed(ranks):
    """Entered by one rank alone it would never return; its own graph serves from then on."""
    with lipprof.open_run(ranks[0] / "gathering.h5") as run:
        assert run["status"].tolist() == [2, 0, 0]
        assert "communicates with other processes" in run["reason"][0]
        assert (run["source"][1:] == lipprof.record.SOURCES.index("live")).all()


def test_what_cannot_be_profiled_says_why(ranks):
    folder, (first, second) = ranks
    assert "rank 1 of 2" in second["rank"]
    assert "replicas would drift apart" in first["AMOS"]
    assert "static_graph" in first["static"]
    assert not (folder / "none.h5").exists()


def test_sharded_and_synchronised_models_are_refused():
    with pytest.raises(AttachError, match="SyncBatchNorm"):
        check_replica(nn.Sequential(nn.SyncBatchNorm(3)))

    class FullyShardedDataParallel(nn.Module):
        pass

    with pytest.raises(AttachError, match="sharded"):
        check_replica(nn.Sequential(FullyShardedDataParallel()))
    assert process_count() == 1


PROGRAM = """
import torch
from torch import distributed
from tests.profiler.test_distributed import train
distributed.init_process_group("gloo")
path, _ = train(distributed.get_rank())
torch.save(path[-1], f"{distributed.get_rank()}.pt")
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_a_launcher_starts_lipprof_inside(ranks, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    options = ["--every", "2", "--top", "2", "--bottom", "1", "--set", "diagonal_probes=2"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "lipprof", "attach", *options, "--", "program.py"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=500, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Rank 0 of 2 measures its own batch") == 1
    for rank, found in enumerate(ranks[1]):
        end = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(map(torch.equal, end, found["bare"][0][-1]))
    with (
        lipprof.open_run(tmp_path / "run.h5") as one,
        lipprof.open_run(ranks[0] / "replay.h5") as two,
    ):
        np.testing.assert_array_equal(one["eigenvalue"], two["eigenvalue"])
