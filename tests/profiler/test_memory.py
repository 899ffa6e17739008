"""A memory limit, against the allocator's own count."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import lipprof
from lipprof.demo.gpt import CharGPT
from lipprof.errors import ConfigError


@pytest.fixture(scope="module")
def gpt():
    torch.manual_seed(0)
    model = CharGPT(40, length=16, layers=1, width=64)
    tokens = torch.randint(0, 40, (4, 8, 17))
    return model, [(batch[:, :-1].contiguous(), batch[:, 1:].contiguous()) for batch in tokens]


def peak_of(gpt, limit):
    """Bytes at the peak of a few Lanczos steps, and what computed products."""
    model, probe = gpt

    def look():
        return lipprof.surface(
            model, lambda m, batch: m.loss(batch), probe=probe, memory_limit=limit, pairs=3
        )

    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, profile_memory=True) as record, look() as seen:
        seen.eigenpairs(top=2, bottom=1, max_matvecs=8)
    events = record.profiler.kineto_results.events()
    live = torch.tensor([e.nbytes() for e in events if e.name() == "[memory]"]).cumsum(0)
    return int(live.max()), seen.engine


@pytest.mark.slow  # 40 s: the allocator's events are many
def test_the_limit_holds(gpt):
    free, engine = peak_of(gpt, "1GiB")
    assert engine == "retained"
    engines = set()
    for share in (0.8, 0.4):
        limit = int(share * free)
        peak, engine = peak_of(gpt, limit)
        assert peak <= 1.02 * limit
        engines.add(engine)
    assert engines == {"retained", "recomputed"}
    with pytest.raises(ConfigError, match="memory_limit="):
        peak_of(gpt, int(0.1 * free))
