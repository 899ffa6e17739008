"""Settings from profiles, TOML files and keywords, and what is refused."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipprof.errors import ConfigError
from lipprof.settings import Settings, load_settings, profiles

small = st.integers(0, 10**6)
positive = st.floats(0, exclude_min=True, allow_nan=False)
fraction = st.floats(0, 1, exclude_min=True, exclude_max=True)
FIELDS = {
    "every": st.integers(1, 10**9),
    "wait": small,
    "until": small,
    "at": st.lists(small, max_size=4).map(tuple),
    "max_overhead": st.none() | fraction,
    "top": small,
    "bottom": small,
    "tol": fraction,
    "max_matvecs": st.integers(2, 10**6),
    "basis_size": st.integers(4, 100),
    "diagonal_probes": small.filter(lambda probes: probes != 1),
    "stability": st.booleans(),
    "blocks": st.none() | st.sampled_from(["tensor", "module", ("*.weight", "*.bias")]),
    "engine": st.sampled_from(["auto", "retained", "traced", "differences"]),
    "memory_limit": st.none() | st.integers(0, 2**50),
    "check_deterministic": st.booleans(),
    "cuda_graph": st.booleans(),
    "mode": st.sampled_from(["eval", "train"]),
    "reduction": st.sampled_from(["mean", "sum"]),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "lipschitz": st.lists(
        st.sampled_from(["drift", "exact", "eigenarc"]), min_size=1, max_size=3
    ).map(tuple),
    "superiority": st.booleans(),
    "descents": st.booleans(),
    "calibrate": st.booleans(),
    "alpha": fraction,
    "epsilon": positive,
    "bias_correction": st.booleans(),
    "distance_floor": positive,
    "units": st.none() | st.sampled_from(["tensor", "module"]) | st.integers(1, 10**9),
    "rule": st.sampled_from(["newton-safe", "threshold", "quantile(share=0.3, side='low')"]),
    "threshold": positive,
    "aggregate": st.sampled_from(["trace", "mean", "max"]),
    "denoise": st.booleans(),
    "hysteresis": st.floats(1, allow_nan=False),
    "dwell": st.integers(1, 100),
    "warmup": small,
    "strict": st.booleans(),
    "swmr": st.booleans(),
}


def test_a_single_probe_cannot_tell_its_noise():
    with pytest.raises(ConfigError, match=r"settings: diagonal_probes=1 cannot .* denoise=False"):
        load_settings(diagonal_probes=1)
    assert load_settings(diagonal_probes=1, denoise=False).diagonal_probes == 1


def test_every_field_has_a_strategy_and_a_description():
    assert FIELDS.keys() == Settings.model_fields.keys()
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("name", profiles())
def test_installed_profiles_are_valid_and_say_what_they_are_for(name):
    first_line = profiles()[name].read_text(encoding="utf-8").splitlines()[0]
    assert first_line.startswith("# ")
    assert first_line.endswith(".")
    settings = load_settings(name)
    assert Settings(**tomllib.loads(settings.to_toml())) == settings


def test_the_default_profile_is_the_defaults():
    assert "default" in profiles()
    assert load_settings("default") == load_settings() == Settings()


def test_keywords_win_over_a_profile():
    assert load_settings("quick").every == 50
    changed = load_settings("quick", every=7, bottom=0)
    assert changed == load_settings("quick").model_copy(update={"every": 7, "bottom": 0})


def test_keywords_that_are_none_are_ignored():
    assert load_settings("quick", every=None, at=None) == load_settings("quick")


@pytest.mark.parametrize("as_path", [str, lambda path: path], ids=["str", "Path"])
def test_a_profile_may_be_a_file(tmp_path, as_path):
    path = tmp_path / "mine.toml"
    path.write_text("at = [1, 10]\ntol = 0.5\n")
    assert load_settings(as_path(path)) == Settings(at=(1, 10), tol=0.5)


@given(st.fixed_dictionaries({}, optional=FIELDS))
def test_toml_round_trip(values):
    settings = Settings(**values)
    assert Settings(**tomllib.loads(settings.to_toml())) == settings


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Settings().every = 3


@pytest.mark.parametrize(
    "bad",
    [
        {"every": 0},
        {"every": "often"},
        {"every": 2.5},
        {"evry": 3},
        {"at": 5},
        {"at": (1, "two")},
        {"tol": 0.0},
        {"tol": 1.0},
        {"tol": float("nan")},
        {"basis_size": 3},
        {"mode": "evaluate"},
        {"alpha": 1.0},
        {"rule": "coin"},
        {"hysteresis": 0.9},
        {"strict": "perhaps"},
    ],
    ids=str,
)
def test_errors_name_the_field_and_the_value(bad):
    ((name, value),) = bad.items()
    shown = "two" if name == "at" and value != 5 else value
    with pytest.raises(ConfigError) as caught:
        load_settings(**bad)
    assert name in str(caught.value)
    assert str(shown) in str(caught.value)


def test_an_error_names_every_wrong_field():
    with pytest.raises(ConfigError, match=r"every=0.*dwell=0"):
        load_settings(every=0, dwell=0)


def test_an_unknown_profile_is_named_beside_the_known_ones():
    with pytest.raises(ConfigError, match=r"'quik'.*default.*quick"):
        load_settings("quik")


@pytest.mark.parametrize(
    "content", [b"every = \n", b"every: 3\n", b"\xff\xfe"], ids=["no value", "yaml", "not utf-8"]
)
def test_a_file_that_is_not_toml_is_named(tmp_path, content):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml is not a TOML file"):
        load_settings(path)


def test_a_wrong_field_of_a_file_is_named(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("evry = 3\n")
    with pytest.raises(ConfigError, match="evry=3"):
        load_settings(path)
