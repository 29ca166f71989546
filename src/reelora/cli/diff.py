"""``reelora diff``"""

import json
from typing import Annotated

import typer

from .options import AsJson

__all__ = ["diff"]

Adapters = Annotated[str, typer.Argument(metavar="FILE[,alpha=64|,from=PRODUCER]", help="An adapter.")]


def diff(first: Adapters, second: Adapters, as_json: AsJson = False) -> None:
    """Show how two adapters differ: by module how far, in which direction, and whether they change the same things.

    Example: reelora diff step-100.safetensors step-200.safetensors
    """
    from reelora import recipes

    from .terminal import Terminal

    with Terminal() as terminal:
        difference = recipes.diff(first, second, listener=terminal)
    rows = recipes.diff_rows(difference)
    if as_json:
        print(json.dumps(rows))
        return
    for line in recipes.diff_lines(difference):
        print(line)
