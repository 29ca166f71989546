"""``reelora inspect``"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Alpha, AsJson, Producer, SatConfig, refuse_unused
from .printing import print_facts

if TYPE_CHECKING:
    from reelora.recipes import Inspection

__all__ = ["inspect"]

LEVELS = " .:-=+*#%@"


def inspect(
    path: Annotated[str, typer.Argument(metavar="FILE", help="An adapter (file, folder or hub id), or a video or picture.")],
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
        given = {"--base": base, "--alpha": alpha, "--from": producer, "--sat-config": sat_config, "--html": html}
        refuse_unused({"--deep": deep, **given}, "of a video or picture")
        video = recipes.inspect_video(Path(path))
        print_facts(video.as_json() if as_json else video.facts, as_json=as_json)
        return
    if html is not None:
        recipes.check_new(html)
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
    print_facts(found.as_json() if as_json else found.facts, as_json=as_json)
    if as_json:
        return
    _show_modules(found)
    for sentence in found.advice:
        print(f"! {recipes.plain(sentence)}")


def _show_modules(found: "Inspection") -> None:
    """The strength over blocks as a heat map: for each kind of module a line that says how strong, and one that shows it."""
    from rich.console import Console
    from rich.text import Text

    from reelora import recipes

    grid = recipes.strengths(found)
    if not grid:
        return
    console, top = Console(highlight=False), max(value for row in grid.values() for value in row.values()) or 1.0
    for line in ["", *recipes.value_lines(found), f"{recipes.strength_title(found)}, block by block:"]:
        print(line)
    for leaf, row in grid.items():
        print(f"  {leaf}: {min(row.values()):.3g} to {max(row.values()):.3g}")
        cells = [_cell(value / top) for value in row.values()]
        room = console.width - 4
        for start in range(0, len(cells), room):
            console.print(Text("    ").append_tokens(cells[start : start + room]))


def _cell(level: float) -> tuple[str, str]:
    return LEVELS[round(9 * level)], f"rgb({round(255 * level)},{round(120 + 60 * level)},200)"
