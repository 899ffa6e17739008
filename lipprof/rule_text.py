"""A rule of the advice as text, ``quantile(share=0.3, side=low)``, and which rules there are.

Text is what TOML, the command line and a run file can hold; ``lipprof.advice`` has what the rules
do.  Values are Python literals; one that is none stands for itself, so that ``side=low`` needs no
quotes and ``inverted(rule=quantile(share=0.3))`` nests.  Nothing is evaluated.
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

from lipprof.errors import ConfigError

OPTIONS: dict[str, tuple[str, ...]] = {
    "newton-safe": (),
    "threshold": ("limit",),
    "quantile": ("share", "side", "of"),
    "descent": ("horizon",),
    "random": ("share", "seed"),
    "inverted": ("rule",),
    "static": ("first",),
    "depth": ("share", "side", "of"),
    "first-then-second": ("until",),
}
"""Every rule by its name, with the names of its options."""

_FORM = re.compile(r"([a-z][a-z-]*)\s*(?:\((.*)\))?", re.DOTALL)


def read_rule(text: str) -> tuple[str, dict[str, Any]]:
    """Read the text of a rule.

    Args:
        text: ``name`` or ``name(option=value, ...)``.

    Returns:
        The name and the options that were given; a rule among them is its own text.

    Raises:
        ConfigError: there is no such rule or option, or the text cannot be read.
    """
    form = _FORM.fullmatch(text.strip())
    if form is None or form[1] not in OPTIONS:
        raise ConfigError(
            f"Unknown rule {text!r}. Known: {', '.join(OPTIONS)}; options follow in parentheses, "
            "as in quantile(share=0.3)."
        )
    name, source = form[1], f"f({form[2] or ''})"
    options = _keywords(source)
    if options is None or not options.keys() <= set(OPTIONS[name]):
        known = ", ".join(OPTIONS[name]) or "none"
        raise ConfigError(
            f"Rule {text!r} cannot be read. Write {name}(option=value, ...); options of {name}: "
            f"{known}."
        )
    if "rule" in options:
        options["rule"] = write_rule(*read_rule(str(options["rule"])))
    return name, options


def write_rule(name: str, options: Mapping[str, Any]) -> str:
    """Write a rule so that ``read_rule`` reads it back.

    Args:
        name: of the rule.
        options: by name; a rule among them as its text.

    Returns:
        The text.
    """
    if not options:
        return name
    written = (f"{key}={value if key == 'rule' else repr(value)}" for key, value in options.items())
    return f"{name}({', '.join(written)})"


def _keywords(source: str) -> dict[str, Any] | None:
    """Keywords of a call; None if it is none, or has positional arguments."""
    try:
        call = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        return None
    return {str(given.arg): _value(given.value, source) for given in call.keywords}


def _value(node: ast.expr, source: str) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        return ast.get_source_segment(source, node)
