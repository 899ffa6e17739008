import runpy
from pathlib import Path

import pytest

import lipprof

FOLDER = Path(__file__).parent.parent / "examples"
SHORT = ("minimal.py", "trial.py")
EXAMPLES = [*sorted(FOLDER.glob("[!_]*.py")), *(FOLDER / "amos" / name for name in SHORT)]


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_leaves_a_good_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    with lipprof.open_run(tmp_path / f"{path.stem}.h5") as run:
        assert run.finished
        assert (run["status"] == 0).all()
        assert run.recommendation().first_order_share >= 0


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80
