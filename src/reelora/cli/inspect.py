"""``reelora inspect``"""

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["inspect"]


def inspect(
    path: Annotated[Path, typer.Argument(help="An adapter file or folder, or a video that reelora made.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Show what an adapter is and how strong, or how a video was made.

    Example: reelora inspect adapter.safetensors
    """
    from reelora import recipes

    facts = recipes.inspect(path)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<{width}}  {_shown(value)}")


def _shown(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    if isinstance(value, tuple):
        return " x ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
