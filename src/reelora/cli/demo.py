"""``reelora demo``"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import Device

__all__ = ["demo"]


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = Path("demo"),
    device: Device = None,
    seed: Annotated[int, typer.Option("--seed", help="Everything random follows from it.")] = 0,
) -> None:
    """Teach the embedded pocket model a shape that it does not know, and show it before and after.

    Example: reelora demo
    """
    from reelora import recipes

    from .terminal import Terminal

    with Terminal() as terminal:
        outcome = recipes.demo(output, device=device or "auto", seed=seed, listener=terminal)
    print("\n".join(outcome.lines(program=_program())))


def _program() -> str:
    """How this was called, to be called so again."""
    called = sys.argv[0]
    return f"{sys.executable} -m reelora" if called.endswith("__main__.py") else called
