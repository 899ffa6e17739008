"""A damaged or malicious file gives one RunFileError, never another exception."""

import contextlib
import shutil
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lipprof.errors import RunFileError
from lipprof.record import VARIABLES, RunWriter, open_run, repair
from lipprof.record.marked import lookup3


@pytest.fixture
def path(tmp_path, header, make_measurement):
    """Return a finished run of five measurements."""
    with RunWriter(tmp_path / "run.h5", header) as writer:
        for i in range(5):
            writer.append(make_measurement(i))
    return tmp_path / "run.h5"


def read_everything(path):
    with open_run(path) as run:
        for variable in VARIABLES:
            run[variable.name]
        list(run)
        _ = run.finished, run.run_seconds, run.settings, repr(run)
        run.recommendation()


def replace(name, **dataset):
    def change(file):
        del file[name]
        file.create_dataset(name, **dataset)

    return change


def link(name, target):
    def change(file):
        del file[name]
        file[name] = target

    return change


def external_storage(file):
    del file["loss"]
    file.create_dataset("loss", (5,), "f8", external=[("/etc/hostname", 0, 40)])


def virtual(file):
    del file["loss"]
    layout = h5py.VirtualLayout((5,), "f8")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "loss", (5,))
    file.create_virtual_dataset("loss", layout)


HOSTILE = {
    "n_valid beyond the rows": lambda f: f["n_valid"].write_direct(np.array(6)),
    "n_valid astronomic": lambda f: f["n_valid"].write_direct(np.array(2**62)),
    "n_valid negative": lambda f: f["n_valid"].write_direct(np.array(-1)),
    "n_valid missing": lambda f: f.pop("n_valid"),
    "n_valid an array": replace("n_valid", data=np.arange(3)),
    "n_valid text": replace("n_valid", data="5"),
    "n_valid empty": replace("n_valid", data=h5py.Empty("i8")),
    "loss a group": lambda f: (f.pop("loss"), f.create_group("loss")),
    "loss a type": lambda f: (f.pop("loss"), f.__setitem__("loss", np.dtype("f8"))),
    "loss text": replace("loss", data=np.array([b"x"] * 5)),
    "loss complex": replace("loss", data=np.zeros(5, complex)),
    "loss compound": replace("loss", data=np.zeros(5, [("a", "f8")])),
    "loss scalar": replace("loss", data=1.0),
    "loss of two axes": replace("loss", data=np.zeros((5, 2))),
    "loss outside": external_storage,
    "loss virtual": virtual,
    "loss a soft link": link("loss", h5py.SoftLink("/trace")),
    "loss an external link": link("loss", h5py.ExternalLink("/tmp/other.h5", "/loss")),
    "eigenvalue of other pairs": replace("eigenvalue", data=np.zeros((5, 4))),
    "status unknown": lambda f: f["status"].write_direct(np.full(5, 77, "i1")),
    "reason numbers": replace("reason", data=np.zeros(5)),
    "tensor numbers": replace("tensor", data=np.zeros(3)),
    "tensor missing": lambda f: f.pop("tensor"),
    "tensor astronomic": replace("tensor", shape=(2**50,), dtype="S8", chunks=(1024,)),
    "numel short": replace("numel", data=np.zeros(2, int)),
    "top negative": lambda f: f.attrs.update(top=-1, bottom=4),
    "top text": lambda f: f.attrs.update(top="2"),
    "top too many": lambda f: f.attrs.update(top=9),
    "schema text": lambda f: f.attrs.update(schema_version="one"),
    "schema many": lambda f: f.attrs.update(schema_version=[1, 1]),
    "settings a number": lambda f: f.attrs.update(settings=3),
    "settings missing": lambda f: f.attrs.pop("settings"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(path, change):
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(RunFileError, match=r"run\.h5") as caught:
        read_everything(path)
    assert len(str(caught.value).splitlines()) == 1
    with contextlib.suppress(RunFileError):
        repair(path)


def test_odd_but_harmless_files(path):
    def change(file):
        file.attrs["array"] = np.zeros(4)
        file.attrs["nothing"] = h5py.Empty("f8")
        file.attrs["bytes"] = np.bytes_(b"caf\xc3\xa9 \xff")
        file["dangling"] = h5py.ExternalLink("/nowhere.h5", "/")
        file.create_group("group")
        values = file["loss"][:]
        replace("loss", data=values.astype("f4"), compression="gzip", shape=(5,))(file)

    with h5py.File(path, "r+") as file:
        change(file)
    read_everything(path)
    assert open_run(path).attrs["bytes"] == "café \ufffd"
    assert repair(path) == 5
    read_everything(path)


def test_a_claim_larger_than_the_file_is_not_allocated(path):
    """2**44 rows of float64 would be 128 TiB; the fill value makes HDF5 willing to read them."""
    with h5py.File(path, "r+") as file:
        file["n_valid"][()] = 2**44
        for variable in VARIABLES:
            file[variable.name].resize(2**44, axis=0)
    with open_run(path) as run, pytest.raises(RunFileError, match=r"more than \d+ bytes can hold"):
        run["loss"]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_flipped_and_missing_bytes(path, data):
    check_broken(path, data)


def check_broken(path, data):
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for position in data.draw(st.lists(st.integers(0, max(0, len(content) - 1)), max_size=20)):
        if content:
            content[position] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        broken = Path(folder) / "run.h5"
        broken.write_bytes(content)
        with contextlib.suppress(RunFileError):
            read_everything(broken)


@pytest.fixture
def killed(tmp_path, header, make_measurement):
    """Return a copy of a live run: what a killed writer leaves, mark included."""
    with RunWriter(tmp_path / "live.h5", header) as writer:
        for i in range(5):
            writer.append(make_measurement(i))
        shutil.copy(tmp_path / "live.h5", tmp_path / "run.h5")
    return tmp_path / "run.h5"


def test_the_checksum_is_the_published_one():
    """Vectors of lookup3.c, driver5."""
    assert lookup3(b"Four score and seven years ago") == 0x17770551


def test_a_killed_run_is_read_without_its_mark(killed):
    with pytest.raises(OSError, match="already open for write"):
        h5py.File(killed)
    content = killed.read_bytes()
    read_everything(killed)
    assert killed.read_bytes() == content


@pytest.mark.parametrize("position", [9, 11, 12, 30, 40, 44])
def test_a_damaged_superblock(killed, position):
    content = bytearray(killed.read_bytes())
    content[position] ^= 0xFF
    killed.write_bytes(content)
    with pytest.raises(RunFileError, match=r"run\.h5 is damaged"):
        open_run(killed)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_flipped_bytes_after_a_kill(killed, data):
    check_broken(killed, data)
