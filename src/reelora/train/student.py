"""Quantiles of Student's t, for intervals over a few clips."""

from math import cos, isclose, pi, sin, sqrt, tan

__all__ = ["student_quantile"]


def student_quantile(confidence: float, degrees: int) -> float:
    """The ``t`` for which a share ``confidence`` of Student's distribution lies in -t to t.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4, turned round by bisection.
    """
    low, high = 0.0, pi / 2
    while not isclose(low, high, rel_tol=1e-12):
        middle = (low + high) / 2
        low, high = (middle, high) if _share_within(middle, degrees) < confidence else (low, middle)
    return sqrt(degrees) * tan(low)


def _share_within(angle: float, degrees: int) -> float:
    """Share of the distribution in -t to t, by the angle whose tangent is ``t / sqrt(degrees)``."""
    is_odd = degrees % 2
    term = cos(angle) if is_odd else 1.0
    total = term if degrees > 1 else 0.0
    for power in range(2 + is_odd, degrees - 1, 2):
        term *= cos(angle) ** 2 * (power - 1) / power
        total += term
    return 2 / pi * (angle + sin(angle) * total) if is_odd else sin(angle) * total
