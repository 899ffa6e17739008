"""``lipprof attach`` in processes of its own: a program cannot tell it from ``python``."""

import subprocess
import sys
import textwrap

import pytest

import lipprof
from lipprof.cli import attach as command
from tests.cli.test_commands import error_of, invoke

PROGRAM = """
import atexit, inspect, multiprocessing, os, pickle, sys, warnings
before_torch = "torch" in sys.modules
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

class Squares(Dataset):
    def __len__(self):
        return 12
    def __getitem__(self, i):
        return torch.full((3,), float(i)), torch.tensor(float(i * i))

class Net(nn.Linear):
    pass

def main():
    print(sys.argv, __name__, __spec__ and __spec__.name, sys.path[0], before_torch)
    print(len(inspect.stack()) if "--depth" in sys.argv else "", __package__, __doc__)
    torch.manual_seed(0)
    model = Net(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for context in ("fork", "spawn"):
        loader = DataLoader(Squares(), 4, num_workers=1, multiprocessing_context=context)
        for x, y in loader:
            optimizer.zero_grad()
            (model(x)[:, 0] - y).square().mean().backward()
            optimizer.step()
    print([p.tolist() for p in pickle.loads(pickle.dumps(model)).parameters()])
    print(torch.get_rng_state().sum(), sys.excepthook is sys.__excepthook__, sys.stdout.errors)
    print(type(sys.modules["__main__"]).__name__, sys.modules["__main__"].Net is Net)
    atexit.register(lambda: print("at exit", sys.modules["__main__"].Net is Net))
    sys.exit(7)

if __name__ == "__main__":
    main()
"""


def python(*arguments, folder):
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("how", [["program.py"], ["-m", "package.train"]], ids=["script", "module"])
def test_a_program_runs_as_under_python(how, tmp_path):
    (tmp_path / "package").mkdir()
    for path in ("program.py", "package/train.py"):
        (tmp_path / path).write_text(PROGRAM)
    bare = python(*how, "--every", "9", "--", "x", folder=tmp_path)
    attach = ("-m", "lipprof", "attach", "--every", "2", "--top", "1", "--bottom", "1", "--")
    attached = python(*attach, *how, "--every", "9", "--", "x", folder=tmp_path)
    assert (attached.stdout, attached.returncode) == (bare.stdout, bare.returncode)
    assert bare.returncode == 7
    assert "profiling Net (4 parameters) under Adam into run.h5." in attached.stderr
    with lipprof.open_run(tmp_path / "run.h5") as run:
        assert run.finished
        assert run["iteration"].tolist() == [0, 2, 4]


FAILURES = {
    "exception": "def f():\n    raise ValueError('mine') from KeyError(1)\nf()",
    "interrupt": "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)",
    "terminated": "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(5)",
    "syntax": "x = = 1",
    "message": "import sys\nsys.exit('no data')",
    "own hook": "import sys\nsys.excepthook = lambda *e: print('hook', e[1])\n1 / 0",
}


@pytest.mark.parametrize("text", FAILURES.values(), ids=FAILURES)
def test_a_program_fails_as_under_python(text, tmp_path):
    (tmp_path / "program.py").write_text(text)
    bare = python("program.py", folder=tmp_path)
    attached = python("-m", "lipprof", "attach", "--", "program.py", folder=tmp_path)
    said = "lipprof: nothing was profiled: the program did not import torch.\n"
    assert attached.returncode == bare.returncode != 0
    assert attached.stdout == bare.stdout
    assert attached.stderr.removesuffix(said) == bare.stderr


def test_an_interrupted_run_is_finished(tmp_path):
    (tmp_path / "program.py").write_text(
        textwrap.dedent("""
        import os, signal, torch
        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for i in range(10):
            model(torch.ones(2, 3)).square().mean().backward()
            optimizer.step()
            if i == 2:
                os.kill(os.getpid(), signal.SIGINT)
        """)
    )
    options = ("--every", "1", "--top", "1", "--bottom", "1")
    done = python("-m", "lipprof", "attach", *options, "--", "program.py", folder=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("Traceback") == 1
    assert "lipprof/" not in done.stderr
    with lipprof.open_run(tmp_path / "run.h5") as run:
        assert run.finished
        assert len(run) == 3


def launch_of(*arguments):
    with pytest.raises(command.Launching) as ready:
        invoke("attach", *arguments)
    return ready.value.launch


def test_options_are_ours_before_the_dashes_and_the_programs_after(tmp_path):
    program = tmp_path / "train.py"
    program.touch()
    launch = launch_of(
        "--every", 5, "--set", "engine=traced", "--set", "at=[1, 3]", "--set", "memory_limit=4GiB",
        "--", program, "--every", 7, "--", "x",
    )  # fmt: skip
    assert launch.command == [str(program), "--every", "7", "--", "x"]
    assert (launch.settings.every, launch.settings.engine) == (5, "traced")
    assert launch.settings.at == (1, 3)
    assert launch.settings.memory_limit == 4 * 2**30
    assert launch_of("-m", "package", "--", "--lr", 1).command == ["-m", "package", "--lr", "1"]
    assert launch_of("--", "-m", "package").command == ["-m", "package"]
    assert launch_of(program, "--top", 3).command == [str(program), "--top", "3"]


def test_mistakes_are_told_before_anything_runs(tmp_path):
    program = tmp_path / "train.py"
    program.touch()
    assert "no program to run" in error_of("attach")
    assert "no file 'nope.py'" in error_of("attach", "--", "nope.py")
    assert "evry" in error_of("attach", "--set", "evry=3", "--", program)
    assert "every=0" in error_of("attach", "--every", 0, "--", program)
    assert "name=value" in invoke("attach", "--set", "evry", "--", program, exit_code=2).stderr


BROKEN = """
import torch
print("training", torch.ones(2).sum().item())
raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("name", "word", "code"), [("attach", "profiled", 3), ("doctor", "examined", 1)]
)
def test_a_library_that_is_broken_is_told_in_a_sentence(name, word, code, tmp_path):
    """A file beside the program stands for it; ``import torch`` must not fail of that."""
    (tmp_path / "h5py.py").write_text("raise ImportError('libhdf5.so.310: no\\nsuch file')")
    (tmp_path / "program.py").write_text(BROKEN)
    done = python("-m", "lipprof", name, "--", "program.py", folder=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stdout == ("training 2.0\n" if name == "attach" else "")
    assert done.stderr == (
        f"lipprof: nothing is {word}: lipprof cannot be loaded here. ImportError: "
        "libhdf5.so.310: no such file\n"
    )
