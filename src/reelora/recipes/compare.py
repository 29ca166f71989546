"""A difference of two adapters, for people and for programs."""

from dataclasses import asdict

from reelora.adapters.algebra import Difference
from reelora.errors import first_few

from .numbers import finite
from .texts import plain

__all__ = ["diff_lines", "diff_rows"]


def diff_rows(difference: Difference) -> dict[str, object]:
    """Plain values; an infinite ratio, which JSON lacks, is null."""
    return {
        "relative_difference": finite(difference.relative_difference),
        "blocks": {block: finite(value) for block, value in difference.blocks.items()},
        "only_first": dict(difference.only_first),
        "only_second": dict(difference.only_second),
        "modules": {
            name: {key: finite(value) for key, value in asdict(row).items()} for name, row in difference.modules.items()
        },
    }


def diff_lines(difference: Difference) -> list[str]:
    """The whole in one line, then the blocks, then the modules that differ most."""
    lines = [f"relative difference |A - B| / |A|: {difference.relative_difference:.4g}"]
    for label, lone in (("first", difference.only_first), ("second", difference.only_second)):
        if lone:
            lines.append(f"only in the {label}: {len(lone)} modules, {plain(first_few([*lone]))}")
    if difference.relative_difference == 0:
        return [*lines, "they are the same"]
    lines += ["", "by block:", *(f"  {plain(block)}  {value:.4g}" for block, value in difference.blocks.items())]
    worst = sorted(difference.modules.items(), key=lambda item: -item[1].relative_difference)[:10]
    lines += ["", "the modules that differ most:", "  difference  cosine  overlap out / in  module"]
    for name, row in worst:
        overlap = f"{row.output_overlap:.2f} / {row.input_overlap:.2f}"
        lines.append(f"  {row.relative_difference:>10.4g}  {row.cosine:>6.3f}  {overlap:>16}  {plain(name)}")
    return lines
