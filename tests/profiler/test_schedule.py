import pytest
from hypothesis import given
from hypothesis import strategies as st

import lipprof
from lipprof.errors import ConfigError
from lipprof.profiler.schedule import of_settings
from lipprof.settings import load_settings


def measured(schedule, until=100):
    return [i for i in range(until) if schedule(i)]


def test_every_wait_until():
    assert measured(lipprof.schedule(every=30)) == [0, 30, 60, 90]
    assert measured(lipprof.schedule(wait=5, every=40)) == [5, 45, 85]
    assert measured(lipprof.schedule(every=10, until=20)) == [0, 10, 20]
    assert measured(lipprof.at([3, 1, 70])) == [1, 3, 70]


def test_log_spaced():
    assert measured(lipprof.log_spaced()) == [0, 1, 2, 4, 8, 16, 32, 64]
    assert measured(lipprof.log_spaced(start=10, factor=3)) == [0, 10, 30, 90]


@given(st.integers(1, 50), st.floats(1.01, 10))
def test_log_spaced_does_not_depend_on_where_it_is_asked_first(start, factor):
    whole = measured(lipprof.log_spaced(start=start, factor=factor))
    resumed = lipprof.log_spaced(start=start, factor=factor)
    assert [i for i in range(50, 100) if resumed(i)] == [i for i in whole if i >= 50]


def test_settings_describe_a_schedule():
    assert measured(of_settings(load_settings(every=25, wait=10, until=60))) == [10, 35, 60]
    assert measured(of_settings(load_settings(at=[4, 2]))) == [2, 4]


def test_senseless_schedules_are_refused():
    with pytest.raises(ConfigError, match="every=0"):
        lipprof.schedule(every=0)
    with pytest.raises(ConfigError, match="factor=1"):
        lipprof.log_spaced(factor=1)
