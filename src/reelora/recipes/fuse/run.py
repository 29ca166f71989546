"""The verb: plan, write, check, and say what came of it."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from reelora.adapters import Adapter
from reelora.errors import first_few
from reelora.recipes.listener import Listener, counted

from .check import Checked, check_files
from .plan import plan_fuse
from .write import fresh_output, write_files

__all__ = ["FuseOutcome", "fuse"]

VANISHING = 0.25
"""A share of an update whose loss can be seen."""


@dataclass(frozen=True, kw_only=True)
class FuseOutcome:
    """What was written."""

    output: Path
    provenance: Mapping[str, Any]
    """As it stands in the header of every file with a fused weight."""
    lost: Mapping[str, float]
    """Of every fused tensor (``role.name``), the share of its update that rounding has taken."""
    tensors: int
    """Of the roles that are changed, fused ones among them."""
    left_out: tuple[str, ...]
    size_bytes: int
    seconds: float
    checked: Checked | None

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {**asdict(self), "output": str(self.output), "fused": len(self.lost)}


def fuse(
    base: str,
    adapters: Mapping[str, tuple[Adapter, float]],
    output: Path,
    *,
    rounding: str = "nearest",
    seed: int = 0,
    link: bool = False,
    check: bool = False,
    listener: Listener,
) -> FuseOutcome:
    """Write a model whose weights are those of ``base`` with adapters added at their strengths; the base stays as it is.

    ``base`` is a pipeline's folder, the folder of one role, or a safetensors file; ``output`` is of the same kind and appears
    whole or not at all. Shards, index and every byte that no adapter changes stay as they are. ``rounding`` is ``nearest``, or
    ``stochastic`` with a ``seed``. ``link`` makes hard links of weights that do not change; the default is copies, since who
    writes into one of two links writes into both. ``check`` reads everything again before the output appears.

    Everything is checked before anything is written: see `plan_fuse`. Raises AdapterError where a sum is no finite number,
    FileFormatError where the check finds a difference, OSError that names a file which cannot be written; nothing is left then.
    """
    started = time.perf_counter()
    plan, notes = plan_fuse(base, adapters, output, rounding=rounding, seed=seed, link=link)
    for note in notes:
        listener.say(note)
    num_steps = len(plan.files.copied) + plan.num_fused
    with fresh_output(plan) as fresh:
        lost = write_files(plan, fresh, counted(listener, "fuse", num_steps))
        checked = check_files(plan, fresh, counted(listener, "check", num_steps)) if check else None
    outcome = FuseOutcome(
        output=output,
        provenance=plan.provenance,
        lost=lost,
        tensors=plan.num_tensors,
        left_out=tuple(map(str, plan.files.left_out)),
        size_bytes=plan.size_bytes,
        seconds=time.perf_counter() - started,
        checked=checked,
    )
    for line in _lines(outcome):
        listener.say(line)
    return outcome


def _lines(outcome: FuseOutcome) -> list[str]:
    """What a user should know afterwards."""
    size = f"{outcome.size_bytes / 1e9:.2f} GB written in {outcome.seconds:.1f} s"
    lines = [f"{outcome.output}: {len(outcome.lost)} of {outcome.tensors} tensors fused, {size}"]
    if outcome.lost:
        worst = max(outcome.lost, key=lambda name: outcome.lost[name])
        share = f"{median(outcome.lost.values()):.1%} of an update (median; {outcome.lost[worst]:.1%} in {worst})"
        lines.append(f"Rounding to the dtype of the weights takes {share}.")
    odd = [name for name, share in outcome.lost.items() if share > VANISHING]
    if odd and outcome.provenance["rounding"] == "nearest":
        lines.append(
            f"In {len(odd)} of {len(outcome.lost)} tensors that is over a quarter, {first_few(odd)}: let the adapter act "
            "beside the weights instead, or fuse with --rounding stochastic, which keeps the mean of the update."
        )
    if found := outcome.checked:
        rounded = "" if found.misrounded is None else f"; {found.misrounded:.1e} of the values are not the nearest to float64"
        lines.append(
            f"Read again and compared bit by bit: {found.fused} fused tensors, {found.untouched} untouched ones, "
            f"{found.files} other files{rounded}."
        )
    return lines
