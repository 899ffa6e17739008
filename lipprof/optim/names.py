"""Whether a recommendation, which is by name, is for the tensors that AMOS was given."""

from collections.abc import Iterable, Sequence

from lipprof.errors import ConfigError
from lipprof.optim.assignment import Unit


def require_names(names: Iterable[str], units: Sequence[Unit], *, named: bool) -> None:
    """Refuse names that are not those of the tensors that may switch.

    Args:
        names: of all tensors that are recommended for, in any order; others that do not switch
            may be among them.
        units: of AMOS.
        named: whether AMOS was given names.

    Raises:
        ConfigError: a name is unknown, or one is missing.
    """
    recommended = set(names)
    unknown = recommended - {unit.name for unit in units}
    trained = {u.name for u in units if not u.bound and u.tensor.requires_grad}
    missing = trained - recommended
    if unknown and not named:
        raise ConfigError(
            "A recommendation is by name, and AMOS was given parameters without names. "
            "Pass model.named_parameters()."
        )
    if unknown or missing:
        raise ConfigError(
            f"The recommendation does not fit. Unknown here: {_listed(unknown)}; missing in "
            f"it: {_listed(missing)}. Profile the parameters that AMOS optimizes."
        )


def _listed(names: set[str]) -> str:
    shown = sorted(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"
