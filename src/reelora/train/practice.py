"""How a step runs a model: what a planner has to know of it."""

from reelora.plan import Practice

from .predict import predictor_of
from .recompute import Kept, ways_of

__all__ = ["PRACTICE"]

PRACTICE: Practice[Kept] = Practice(ways_of=ways_of, predictor_of=predictor_of)
