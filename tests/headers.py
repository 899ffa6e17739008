"""Headers for run files that tests write."""

from lipprof.record import RunHeader
from lipprof.settings import Settings


def run_header(*, top: int, bottom: int, **fields) -> RunHeader:
    """A header; tensor names, sizes and the model class are the caller's, the rest may be."""
    common = dict(
        optimizer_class="SGD",
        device="cpu",
        precision="float32",
        source="closure",
        settings=Settings(top=top, bottom=bottom).to_toml(),
    )
    return RunHeader(**(common | dict(top=top, bottom=bottom) | fields))
