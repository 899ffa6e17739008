"""What this machine, this torch and this folder can do for lipprof, found out by trying.

Every line is the outcome of an attempt: a Hessian with known eigenvalues, layers whose fused
kernels have no second derivative (measured twice, by differentiation and by central differences),
a run file written and read while open.  Takes some seconds and leaves nothing behind.
"""

import importlib.metadata
import importlib.util
import platform
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lipprof.profiler.doctor.checks import Check, State
from lipprof.profiler.oneshot import spectrum
from lipprof.record import Measurement, RunHeader, RunWriter, open_run

NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "lustre", "cifs", "smb3", "beegfs", "gpfs", "fuse.sshfs"}
EXTRAS = {
    "xarray": ("xarray", "h5netcdf", "pandas"),
    "lightning": ("lightning",),
    "transformers": ("transformers",),
    "accelerate": ("accelerate",),
}
AGREEMENT = 2e-2  # of eigenvalues by central differences in float32 with exact ones


def diagnose(folder: str | Path = ".") -> Iterator[Check]:
    """Try everything that a run needs.

    Args:
        folder: where run files are to be written.

    Yields:
        One check after the other, as they are done.
    """
    yield Check("versions", State.OK, _versions())
    yield from _devices()
    for device in _usable_devices():
        yield _attempt(f"eigenvalues on {device}", _closed_form, device)
        for name, make in _LAYERS.items():
            yield _attempt(f"{name} on {device}", _second_derivative, make, device)
    yield _attempt("run file", _run_file, Path(folder))
    yield from _file_system(Path(folder))
    yield Check("extras", State.OK, _extras())


def _attempt(name: str, attempt: Callable[..., str], *arguments: Any) -> Check:
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(0)
            return Check(name, State.OK, attempt(*arguments))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return Check(name, State.FAILED, f"{type(error).__name__}: {error}")


def _versions() -> str:
    packages = ("lipprof", "torch", "numpy", "h5py")
    listed = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return ", ".join([*listed, f"Python {platform.python_version()}", platform.system()])


def _devices() -> Iterator[Check]:
    yield Check("cpu", State.OK, f"{torch.get_num_threads()} threads")
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        text = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        yield Check(f"cuda:{i}", State.OK, text)
    if not torch.cuda.is_available():
        yield Check("cuda", State.NOTE, "no CUDA device: measurements run on the CPU.")


def _usable_devices() -> list[str]:
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def _closed_form(device: str) -> str:
    """The Hessian of ½ Σ dᵢ θᵢ² is diag(d)."""
    wanted = torch.tensor([5.0, 3.0, 1.0, -2.0], dtype=torch.float64, device=device)
    model = nn.Linear(4, 1, bias=False, dtype=torch.float64, device=device)
    pairs = spectrum(
        model, lambda m: (wanted * m.weight.square()).sum() / 2, top=1, bottom=1, tol=1e-8
    )
    error = float((pairs.values.cpu() - wanted[[0, -1]].cpu()).abs().max())
    if error > 1e-6:
        raise ArithmeticError(f"the eigenvalues of a known Hessian are off by {error:.1e}")
    return f"those of a known Hessian are right to {max(error, 1e-16):.0e}"


def _attention(device: str) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    model = nn.MultiheadAttention(8, 2, batch_first=True, device=device)
    x = torch.randn(4, 6, 8).to(device)
    return model, lambda m: m(x, x, x, need_weights=False)[0].square().mean()


def _recurrent(device: str) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    model = nn.LSTM(4, 6, device=device)
    x = torch.randn(5, 3, 4).to(device)
    return model, lambda m: m(x)[0].square().mean()


def _convolution(device: str) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.GELU()).to(device)
    x = torch.randn(4, 1, 6, 6).to(device)
    return model, lambda m: m(x).square().mean()


_LAYERS = {"attention": _attention, "LSTM": _recurrent, "convolution": _convolution}


def _second_derivative(make: Callable[[str], Any], device: str) -> str:
    """Largest eigenvalue by differentiating twice, beside the one by central differences."""
    model, loss = make(device)
    exact, differences = (
        float(spectrum(model, loss, top=1, bottom=0, engine=engine).values[0])
        for engine in ("retained", "differences")
    )
    if abs(exact - differences) > AGREEMENT * abs(exact):
        raise ArithmeticError(f"differentiating twice gives {exact:.4g}, not {differences:.4g}")
    return "can be differentiated twice, and agrees with differences of gradients"


def _run_file(folder: Path) -> str:
    """Write a measurement, and read it while the file is open."""
    header = RunHeader(
        tensor_names=("weight",),
        tensor_numel=(4,),
        top=1,
        bottom=1,
        model_class="Linear",
        optimizer_class="SGD",
        device="cpu",
        precision="float32",
        source="closure",
        probe="a known Hessian",
        settings="",
    )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".lipprof-doctor-") as scratch:
        path = Path(scratch) / "run.h5"
        with RunWriter(path, header) as writer:
            writer.append(Measurement.blank(pairs=2, tensors=1, iteration=7))
            with open_run(path) as run:
                iterations = run["iteration"].tolist()
    if iterations != [7]:
        raise OSError(f"wrote iteration 7, read {iterations} from the open file")
    return f"written in {folder.resolve()} and read while open"


def _file_system(folder: Path) -> Iterator[Check]:
    kind = _file_system_of(folder.resolve())
    if kind in NETWORK_FILE_SYSTEMS:
        text = f"{kind}: use swmr=False (lipprof attach --set swmr=false), or a local folder."
        yield Check("file system", State.NOTE, text)
    elif kind is not None:
        yield Check("file system", State.OK, kind)


def _file_system_of(folder: Path) -> str | None:
    """Its type from the mount table, where there is one."""
    table = Path("/proc/mounts")
    if not table.is_file():
        return None
    fields = [line.split() for line in table.read_text(errors="replace").splitlines()]
    mounts = [(f[1], f[2]) for f in fields if folder.is_relative_to(f[1])]
    return max(mounts, key=lambda mount: len(mount[0]), default=("", None))[1]


def _extras() -> str:
    def listed(name: str, packages: tuple[str, ...]) -> str:
        missing = [p for p in packages if importlib.util.find_spec(p) is None]
        return f"{name} ({f'pip install lipprof[{name}]' if missing else 'installed'})"

    return ", ".join(listed(name, packages) for name, packages in EXTRAS.items())
