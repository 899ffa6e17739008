"""Rules: numbers in, a recommendation per tensor out."""

from lipprof.advice.advisor import Advisor
from lipprof.advice.recommendation import MOSTLY_NOISE, Choice, Recommendation

__all__ = ["MOSTLY_NOISE", "Advisor", "Choice", "Recommendation"]
