"""What `inspect` found, for people: rows and lines that a terminal may show, and a page."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from statistics import median

from reelora.adapters import ModuleReport

from . import html
from .inspect import Inspection
from .texts import plain

__all__ = ["fact_rows", "inspection_page", "strength_title", "strengths", "value_lines"]

HEADER_WIDTH, HEADER_ROWS = 120, 20
"""Letters that are shown of an entry of a header, and entries: some hold megabytes."""


def fact_rows(facts: Mapping[str, object]) -> list[tuple[str, str]]:
    """Name and text of all that is not empty; what a file says of itself is indented under its heading."""
    rows = []
    for name, value in facts.items():
        label = name.replace("_", " ")
        if isinstance(value, dict) and any(isinstance(text, str) for text in value.values()):
            rows += [(label, ""), *_header_rows(value)]
        elif value not in ([], {}, ""):
            rows.append((label, plain(_shown(value))))
    return rows


def _header_rows(entries: Mapping[object, object]) -> Iterator[tuple[str, str]]:
    for key, text in islice(entries.items(), HEADER_ROWS):
        yield f"  {plain(str(key), width=40)}", plain(_shown(text), width=HEADER_WIDTH)
    if (more := len(entries) - HEADER_ROWS) > 0:
        yield "  ...", f"and {more:,} more: --json has them all"


def _shown(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, dict):
        return ", ".join(f"{key} ({count})" for key, count in value.items())
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    if isinstance(value, tuple):
        return " x ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def value_lines(inspection: Inspection) -> list[str]:
    """What the values say of all modules together; empty unless they were read."""
    modules = inspection.modules
    lines = [
        _spread("effective rank", modules, lambda module: module.effective_rank if module.is_finite else None),
        _spread("|dW| / |W|", modules, lambda module: module.relative_norm),
        _spread("share lost if fused into bfloat16", modules, lambda module: module.fused_loss),
    ]
    return [line for line in lines if line]


def _spread(label: str, modules: Sequence[ModuleReport], of: Callable[[ModuleReport], float | None]) -> str:
    values = {module.name.partition(".")[2]: value for module in modules if (value := of(module)) is not None}
    if not values:
        return ""
    most = max(values, key=values.__getitem__)
    low, high = min(values.values()), values[most]
    if low == high:
        return f"{label}: {low:.3g} everywhere"
    return f"{label}: {low:.3g} to {high:.3g}, median {median(values.values()):.3g}, most in {plain(most, width=80)}"


def strength_title(inspection: Inspection) -> str:
    """What `strengths` are."""
    return "norm of the update" if _is_known(inspection) else "norm of B @ A (nobody knows the scale)"


def strengths(inspection: Inspection) -> dict[str, dict[str, float]]:
    """Norm of the update by kind of module and block, at scale 1 while a scale is unknown; NaN is left out.

    Empty unless values were read.
    """
    grid: dict[str, dict[str, float]] = {}
    for module in inspection.modules:
        block, leaf = _block_and_leaf(module.name)
        norm = module.norm if _is_known(inspection) else module.bare_norm
        if norm is not None:
            grid.setdefault(plain(leaf, width=80), {})[block] = norm
    return grid


def _is_known(inspection: Inspection) -> bool:
    return all(module.norm is not None for module in inspection.modules if module.is_finite)


def _block_and_leaf(name: str) -> tuple[str, str]:
    """``transformer.transformer_blocks.3.attn1.to_q`` is block ``3`` of ``transformer_blocks.*.attn1.to_q``."""
    parts = name.split(".")[1:]
    numbers = [index for index, part in enumerate(parts) if part.isdigit() and index < len(parts) - 1]
    if not numbers:
        return "0", ".".join(parts)
    block = ".".join(parts[index] for index in numbers)
    return block, ".".join("*" if index in numbers else part for index, part in enumerate(parts))


def inspection_page(path: str, inspection: Inspection) -> str:
    """A self-contained page with all of it and the plots."""
    return html.page(f"Adapter {Path(path).name}", [*_sections(inspection)], footer="Made by `reelora inspect --html`.")


def _sections(inspection: Inspection) -> Iterator[str]:
    if inspection.advice:
        yield html.section("Advice", *(html.paragraph(plain(text)) for text in inspection.advice))
    yield html.section("What it is", html.table([{"what": name, "value": text} for name, text in fact_rows(inspection.facts)]))
    if not inspection.modules:
        return
    curves = {
        "effective rank": [(float(i), float(m.effective_rank)) for i, m in enumerate(inspection.modules)],
        "rank": [(float(i), float(m.rank)) for i, m in enumerate(inspection.modules)],
    }
    lines = [html.paragraph(line) for line in value_lines(inspection)]
    yield html.section("Strength over blocks", *lines, html.heat_map(strengths(inspection), label=strength_title(inspection)))
    yield html.section("Ranks", html.line_plot(curves, x="module", y="rank"))
    rows = [{**asdict(module), "name": plain(module.name.partition(".")[2], width=120)} for module in inspection.modules]
    yield html.section("Modules", html.table(rows))
