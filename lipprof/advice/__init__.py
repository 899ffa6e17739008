"""Rules: numbers in, a recommendation per tensor out."""

from lipprof.advice.advisor import Advisor
from lipprof.advice.recommendation import Choice, Recommendation

__all__ = ["Advisor", "Choice", "Recommendation"]
