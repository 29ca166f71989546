"""How far two adapters are apart, without ever building a dense update."""

import math
from dataclasses import replace

import torch

from reelora.errors import MismatchError, first_few

from .adapter import Adapter, Pair
from .threads import one_thread

__all__ = ["differences", "largest_difference", "relative_difference"]


@one_thread()
def relative_difference(expected: Pair, actual: Pair) -> float:
    """``|E - F| / |E|`` (Frobenius) of the updates ``E`` and ``F`` of two pairs, in float64.

    ``E - F = [s B, -t C] [A; D]`` is a product of thin matrices, so ``|E - F| = |R S^T|`` with R and S from their QR
    decompositions: rank-sized work. Of two DoRAs, the larger one of this and the relative difference of their norms. Infinite
    where a value is NaN or infinite. Raises MismatchError for pairs of different modules, and for a DoRA beside anything but
    the same kind of DoRA; both scales have to be known.
    """
    if expected.shape != actual.shape:
        raise MismatchError(f"Updates of {expected.shape} and {actual.shape} cannot be compared: these are different modules.")
    kinds = [str(pair.magnitude or "a plain LoRA") for pair in (expected, actual)]
    if kinds[0] != kinds[1]:
        raise MismatchError(f"{' and '.join(kinds)} cannot be compared: these are different functions of the base.")
    return max(_of_updates(_worked_out(expected), _worked_out(actual)), _of_magnitudes(expected, actual))


def _worked_out(pair: Pair) -> Pair:
    """The same with factors that are there, where they would be products made anew each time."""
    return replace(pair, a=pair.a, b=pair.b)


def _of_updates(expected: Pair, actual: Pair) -> float:
    if _same_bits(expected, actual):
        return 0.0
    return _ratio(*(_norms_with_one_a(expected, actual) or (_norm(expected), _norm(expected, actual))))


def _of_magnitudes(expected: Pair, actual: Pair) -> float:
    if expected.magnitude is None or actual.magnitude is None:
        return 0.0
    norms, others = expected.magnitude.values.double(), actual.magnitude.values.double()
    return _ratio(float(norms.norm()), float((norms - others).norm()))


def _ratio(norm: float, difference: float) -> float:
    """Infinite for NaN, which no `max` and no bound would find."""
    ratio = difference / norm if norm else math.inf if difference else 0.0
    return math.inf if math.isnan(ratio) else ratio


def largest_difference(expected: Adapter, actual: Adapter) -> float:
    """The largest `relative_difference` of any module; MismatchError if one has modules that the other lacks."""
    return max(differences(expected, actual).values())


def differences(expected: Adapter, actual: Adapter) -> dict[str, float]:
    """The `relative_difference` of every module; MismatchError if one has modules that the other lacks."""
    if lone := sorted(expected.pairs.keys() ^ actual.pairs.keys()):
        raise MismatchError(f"{len(lone)} modules are in only one of the adapters: {first_few(lone)}")
    expected.check_scale()
    actual.check_scale()
    return {name: relative_difference(pair, actual.pairs[name]) for name, pair in expected.pairs.items()}


def _norms_with_one_a(expected: Pair, actual: Pair) -> tuple[float, float] | None:
    """``|s B A|`` and ``|(s B - t C) A|`` where both have the same A, as after a folded scale: a third of the work."""
    if not torch.equal(expected.a, actual.a):
        return None
    wide = torch.linalg.qr(expected.a.double().mT, mode="r").R
    left = _scaled_b(expected)
    norm = float(torch.linalg.matrix_norm(left @ wide.mT))
    return norm, float(torch.linalg.matrix_norm(left.sub_(_scaled_b(actual)) @ wide.mT))


def _norm(pair: Pair, minus: Pair | None = None) -> float:
    """Frobenius norm of one update, or of the difference of two."""
    left, right = [_scaled_b(pair)], [pair.a.double()]
    if minus is not None:
        left.append(-_scaled_b(minus))
        right.append(minus.a.double())
    tall = torch.linalg.qr(torch.cat(left, dim=1), mode="r").R
    wide = torch.linalg.qr(torch.cat(right, dim=0).mT, mode="r").R
    return float(torch.linalg.matrix_norm(tall @ wide.mT))


def _scaled_b(pair: Pair) -> torch.Tensor:
    assert pair.scale is not None, "check_scale comes first"
    return pair.b.double() * pair.scale


def _same_bits(left: Pair, right: Pair) -> bool:
    return left.scale == right.scale and torch.equal(left.a, right.a) and torch.equal(left.b, right.b)
