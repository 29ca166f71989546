"""Numbers as JSON has them."""

import math

__all__ = ["finite"]


def finite(value: object) -> object:
    """The same value; None for an infinite number or NaN, which JSON lacks."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
