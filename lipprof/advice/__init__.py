"""Rules: numbers in, a recommendation per unit out; and whether L foretells Newton's success."""

from lipprof.advice.advisor import Advisor
from lipprof.advice.contest import ContestPlan, Entry, Losses, TrialOutcome
from lipprof.advice.controls import Depth, FirstThenSecond, Inverted, Random, Static
from lipprof.advice.evidence import MOSTLY_NOISE, Candidate, Evidence
from lipprof.advice.named import rule_of
from lipprof.advice.recommendation import Choice, Recommendation
from lipprof.advice.rule import Ratio, Rule
from lipprof.advice.rules import Descent, NewtonSafe, Quantile, Threshold
from lipprof.advice.step_length import Outcome, StepCubic, StepLength, about_right, anchor, verdict
from lipprof.advice.superiority import Correlation, correlate, trial_steps

__all__ = [
    "MOSTLY_NOISE",
    "Advisor",
    "Candidate",
    "Choice",
    "ContestPlan",
    "Correlation",
    "Depth",
    "Descent",
    "Entry",
    "Evidence",
    "FirstThenSecond",
    "Inverted",
    "Losses",
    "NewtonSafe",
    "Outcome",
    "Quantile",
    "Random",
    "Ratio",
    "Recommendation",
    "Rule",
    "Static",
    "StepCubic",
    "StepLength",
    "Threshold",
    "TrialOutcome",
    "about_right",
    "anchor",
    "correlate",
    "rule_of",
    "trial_steps",
    "verdict",
]
