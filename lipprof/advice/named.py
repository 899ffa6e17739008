"""Rules by their names: from ``quantile(share=0.3)`` to the rule."""

from lipprof.advice.controls import Depth, FirstThenSecond, Inverted, Random, Static
from lipprof.advice.rule import Rule
from lipprof.advice.rules import Descent, NewtonSafe, Quantile, Threshold
from lipprof.errors import ConfigError
from lipprof.rule_text import OPTIONS, read_rule

RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        NewtonSafe,
        Threshold,
        Quantile,
        Descent,
        Random,
        Inverted,
        Static,
        Depth,
        FirstThenSecond,
    )
}


def rule_of(rule: Rule | str, threshold: float = 2e-10) -> Rule:
    """Build a rule from its text.

    Args:
        rule: the text, or a rule, which is given back.
        threshold: the limit of ``threshold`` where its text has none, loss/param³ (App. K).

    Returns:
        The rule.

    Raises:
        ConfigError: there is no such rule, or an option is missing, unknown or out of range.
    """
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, str):
        raise ConfigError(
            f"`rule` is a {type(rule).__name__}; expected one of {', '.join(OPTIONS)}, or a rule "
            "such as lipprof.advice.NewtonSafe()."
        )
    name, options = read_rule(rule)
    if "rule" in options:
        options["rule"] = rule_of(options["rule"], threshold)
    if name == Threshold.name:
        options.setdefault("limit", threshold)
    try:
        return RULES[name](**options)
    except TypeError:
        needed = ", ".join(f"{option}=..." for option in OPTIONS[name])
        raise ConfigError(f"Rule {rule!r} lacks an option: write {name}({needed}).") from None
