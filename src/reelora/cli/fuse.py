"""``reelora fuse``"""

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson

__all__ = ["fuse"]


def fuse(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="A pipeline's folder, the folder of one role, a .safetensors file, or pocket.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="A new folder; FILE.safetensors where the base is one file.")
    ],
    adapter: Annotated[
        list[str],
        typer.Option(
            "--adapter",
            "-a",
            metavar="FILE[=STRENGTH][,alpha=64|,from=PRODUCER]",
            help="As often as wanted; strength 1 is as trained.",
        ),
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Read it all again: fused weights bit by bit, the rest byte by byte.")
    ] = False,
    rounding: Annotated[
        str, typer.Option("--rounding", help="nearest, or stochastic: by chance, so that small updates stay on average.")
    ] = "nearest",
    seed: Annotated[int, typer.Option("--seed", help="Of stochastic rounding.")] = 0,
    link: Annotated[
        bool, typer.Option("--link", help="Hard links to weights that do not change, in place of copies; then change neither.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Add adapters into the weights of a model on disk; the result needs no adapter, and the base stays as it is.

    Example: reelora fuse CogVideoX-2b -a style.safetensors=0.8 -a motion.safetensors=0.4 -o CogVideoX-2b-style --check
    """
    from reelora import recipes

    from .terminal import Terminal

    with Terminal() as terminal:
        outcome = recipes.fuse(
            base,
            recipes.read_adapters(adapter),
            output,
            rounding=rounding,
            seed=seed,
            link=link,
            check=check,
            listener=terminal,
        )
    print(json.dumps(outcome.as_json(), ensure_ascii=False) if as_json else output)
