"""Rules: numbers in, a recommendation per tensor out; and whether L foretells Newton's success."""

from lipprof.advice.advisor import Advisor
from lipprof.advice.recommendation import MOSTLY_NOISE, Choice, Recommendation
from lipprof.advice.superiority import Correlation, correlate, trial_steps

__all__ = [
    "MOSTLY_NOISE",
    "Advisor",
    "Choice",
    "Correlation",
    "Recommendation",
    "correlate",
    "trial_steps",
]
