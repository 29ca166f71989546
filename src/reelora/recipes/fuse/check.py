"""Reading an output again: every fused weight against one that is computed anew, every other byte against the base."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from filecmp import cmp
from pathlib import Path

from torch import Tensor

from reelora.errors import FileFormatError, first_few
from reelora.lora import fused_rows, sample_rows
from reelora.tensorio import TensorStore, open_tensors, same_bytes

from .plan import FusePlan
from .write import OnDone, Scratch, fused_tensor

__all__ = ["Checked", "check_files"]

MISROUNDED_AT_MOST = 1e-2
"""Rounding twice, as adding an update that is rounded itself, misrounds four times as many."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found to be as it should."""

    fused: int
    """Tensors whose every bit is that of a second computation."""
    untouched: int
    """Tensors whose every byte is that of the base."""
    files: int
    """Other files whose every byte is that of the base."""
    misrounded: float | None
    """Share of the values, on up to 64 rows of every fused tensor, that are not the nearest to a sum in float64. None where all
    weights are float32, whose sums have nothing to be rounded from, or where chance rounds."""


def check_files(plan: FusePlan, fresh: Path, on_done: OnDone) -> Checked:
    """Read everything that was written again, from the disk itself where the system can be made to forget its copy.

    Raises FileFormatError that names what differs. ``on_done`` is called as often as by `write_files`.
    """
    wrong: list[str] = []
    sampled, misrounded = 0, 0
    for role, store in plan.base.stores.items():
        _forget(fresh / plan.base.place(file) for file in {*store.files.values()})
        written = open_tensors(fresh / plan.base.place(store.path))
        wrong += [f"{role}.{name}" for name in _odd_tensors(plan, role, written, on_done)]
        for odd in _samples(plan, role, written):
            sampled, misrounded = sampled + odd.numel(), misrounded + int(odd.sum())
    wrong += _odd_files(plan, fresh, on_done)
    share = misrounded / sampled if sampled else None
    _refuse(plan, wrong, share)
    untouched = plan.num_tensors - plan.num_fused
    return Checked(fused=plan.num_fused, untouched=untouched, files=len(plan.files.copied), misrounded=share)


def _odd_files(plan: FusePlan, fresh: Path, on_done: OnDone) -> Iterator[str]:
    """The copied files that differ."""
    _forget(fresh / place for place in plan.files.copied)
    for place, source in plan.files.copied.items():
        if not cmp(source, fresh / place, shallow=False):
            yield str(place)
        on_done()


def _odd_tensors(plan: FusePlan, role: str, written: TensorStore, on_done: OnDone) -> Iterator[str]:
    """The tensors of a role that are not what they should be, or that only one of the two has."""
    store, scratch = plan.base.stores[role], Scratch()
    yield from set(store).symmetric_difference(written)
    for name in [name for name in store if name in written]:
        is_fused = name in plan.tensors[role]
        if not same_bytes(fused_tensor(plan, role, name, scratch) if is_fused else store[name], written[name]):
            yield name
        if is_fused:
            on_done()


def _samples(plan: FusePlan, role: str, written: TensorStore) -> Iterator[Tensor]:
    """Which of the sampled values of every fused tensor are not the nearest to the sum in float64."""
    store = plan.base.stores[role]
    for name, uses in plan.tensors[role].items():
        weight = store[name]
        if plan.rounding == "nearest" and weight.dtype.itemsize < 4 and name in written:
            rows = sample_rows(weight)
            nearest = fused_rows(weight, uses, rows).to(weight.dtype)
            yield written[name].flatten(1)[rows] != nearest


def _refuse(plan: FusePlan, wrong: list[str], share: float | None) -> None:
    if wrong:
        raise FileFormatError(
            f"{plan.output}: {len(wrong)} tensors or files are not read back as they were written: {first_few(wrong)}. "
            "Memory or disk of this machine are at fault; nothing was kept."
        )
    if share is not None and share > MISROUNDED_AT_MOST:
        raise FileFormatError(
            f"{plan.output}: {share:.1%} of the fused values are not the nearest to the sum in float64, more than "
            f"{MISROUNDED_AT_MOST:.0%}. The arithmetic of this machine is at fault; nothing was kept."
        )


def _forget(files: Iterable[Path]) -> None:
    """Make the system drop what it remembers of files, so that they are read from the disk; harmless where it cannot."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
