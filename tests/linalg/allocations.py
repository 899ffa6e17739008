"""Peak of torch's own allocations: tracemalloc does not see them.

``torch.profiler`` reports every allocation of the CPU allocator, temporaries within operators too.
"""

import contextlib

from torch.profiler import ProfilerActivity, profile


class Peak:
    bytes = 0


@contextlib.contextmanager
def peak_memory():
    """Yield an object whose ``bytes``, afterwards, is the peak of what was allocated inside."""
    peak = Peak()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        yield peak
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak.bytes = max(peak.bytes, held)
