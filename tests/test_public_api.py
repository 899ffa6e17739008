"""What ``import lipprof`` promises: names, documentation, version, types, and no waiting."""

import importlib.metadata
import inspect
import subprocess
import sys
from importlib import resources

import pytest

import lipprof

DOCUMENTED = sorted(set(lipprof.__all__) - {"__version__"})


@pytest.mark.parametrize("name", DOCUMENTED)
def test_public_names_resolve_and_are_documented(name):
    public = getattr(lipprof, name)
    assert public.__name__ == name
    assert inspect.getdoc(public)


@pytest.mark.parametrize("statement", ["import lipprof", "from lipprof import Settings"])
def test_importing_does_not_wait_for_heavy_packages(statement):
    code = f"{statement}; import sys; print(*{{'torch', 'h5py', 'plotly'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_version_is_the_installed_one():
    assert lipprof.__version__ == importlib.metadata.version("lipprof")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'lipprof'.*'spektrum'"):
        _ = lipprof.spektrum


def test_types_are_shipped():
    assert (resources.files("lipprof") / "py.typed").is_file()
