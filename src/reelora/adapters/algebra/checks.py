"""What arithmetic asks of adapters before it computes anything."""

from collections.abc import Sequence

from reelora.adapters.adapter import Adapter
from reelora.errors import AdapterError, MismatchError, first_few

__all__ = ["check_ready", "check_shapes"]


def check_ready(adapters: Sequence[Adapter]) -> None:
    """Raise unless every adapter knows its scale, holds finite values and no DoRA; and unless they are for one model.

    UnknownScaleError or AdapterError name all adapters that are not ready, MismatchError all modules whose shapes differ.
    """
    problems: dict[int, AdapterError] = {}
    for place, adapter in enumerate(adapters, start=1):
        try:
            adapter.check_usable()
            adapter.check_plain()
        except AdapterError as error:
            problems[place] = error
    if problems:
        lines = [f"- adapter {place} of {len(adapters)}: {error}" for place, error in problems.items()]
        kind = type(next(iter(problems.values())))
        raise kind("\n".join(["This cannot be computed:", *lines]) if len(adapters) > 1 else str(problems[1]))
    check_shapes(adapters)


def check_shapes(adapters: Sequence[Adapter]) -> None:
    """Raise MismatchError with every module that is not of one shape in all the adapters that have it."""
    shapes: dict[str, dict[str, None]] = {}
    for adapter in adapters:
        for name, pair in adapter.pairs.items():
            shapes.setdefault(name, {})[" x ".join(map(str, (*pair.shape, *pair.kernel)))] = None
    if odd := [f"{name} ({' and '.join(found)})" for name, found in shapes.items() if len(found) > 1]:
        raise MismatchError(
            f"{len(odd)} of {len(shapes)} modules differ in shape (out x in): {first_few(odd)}. "
            "These adapters were trained for different models."
        )
