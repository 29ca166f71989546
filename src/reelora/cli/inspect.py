"""``reelora inspect``"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Alpha, AsJson, Producer, SatConfig

if TYPE_CHECKING:
    from reelora.recipes import Inspection

__all__ = ["inspect"]


def inspect(
    path: Annotated[str, typer.Argument(help="An adapter (file, folder or hub id), or a video that reelora made.")],
    deep: Annotated[bool, typer.Option("--deep", help="Read the values too: norms, effective ranks, NaN, hashes.")] = False,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="Also compare with the weights of its base.")
    ] = None,
    alpha: Alpha = None,
    producer: Producer = None,
    sat_config: SatConfig = None,
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with plots.")] = None,
) -> None:
    """Show what an adapter is, how strong, and what it was made for; or how a video was made.

    Example: reelora inspect adapter.safetensors --deep
    """
    from reelora import recipes

    from .terminal import Terminal

    if recipes.is_video(Path(path)):
        _print(recipes.inspect_video(Path(path)), as_json)
        return
    with Terminal() as terminal:
        found = recipes.inspect(
            path,
            deep=deep or html is not None,
            base=base,
            alpha=alpha,
            producer=producer,
            sat_config=sat_config or [],
            listener=terminal,
        )
    if html is not None:
        recipes.write_new_text(html, recipes.inspection_page(path, found))
    if as_json:
        print(json.dumps(found.as_json(), ensure_ascii=False))
        return
    _print(found.facts, False)
    _show_modules(found)
    for sentence in found.advice:
        print(f"! {sentence}")


def _print(facts: dict[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        if value not in ([], {}, ""):
            print(f"{name.replace('_', ' '):<{width}}  {_shown(value)}")


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


def _show_modules(found: "Inspection") -> None:
    """The strength over blocks as a heat map, a row for each kind of module."""
    from rich.console import Console
    from rich.text import Text

    from reelora import recipes

    grid = recipes.strengths(found)
    if not grid:
        return
    console, top = Console(highlight=False), max(value for row in grid.values() for value in row.values()) or 1.0
    console.print("\nnorm of the update, block by block:")
    width = max(map(len, grid))
    for leaf, row in grid.items():
        cells = Text(f"  {leaf:<{width}}  ")
        for value in row.values():
            level = value / top
            cells.append(" .:-=+*#%@"[round(9 * level)], style=f"rgb({round(255 * level)},{round(120 + 60 * level)},200)")
        cells.append(f"  {min(row.values()):.3g} to {max(row.values()):.3g}")
        console.print(cells)
