"""Optional packages: imported when something needs them, or the command that installs them."""

import importlib
from typing import Any

from lipprof.errors import MissingExtraError


def require(module: str, extra: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: dotted name.
        extra: of lipprof, that brings it.

    Returns:
        The module.

    Raises:
        MissingExtraError: it is not installed; the message has the command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"`{package}` is not installed. Run `pip install 'lipprof[{extra}]'`."
        ) from error
