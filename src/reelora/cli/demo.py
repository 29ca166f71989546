"""``reelora demo``"""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = Path("demo"),
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    seed: Annotated[int, typer.Option("--seed", help="Everything random follows from it.")] = 0,
) -> None:
    """Teach the embedded pocket model a shape that it does not know, and show it before and after.

    Example: reelora demo
    """
    from reelora import recipes

    from .terminal import Terminal

    with Terminal() as terminal:
        outcome = recipes.demo(output, device=device, seed=seed, listener=terminal)
    print("\n".join(outcome.lines()))
