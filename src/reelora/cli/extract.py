"""``reelora extract``"""

from typing import Annotated

import typer

from .options import Destination, Dtype, Keep, Layout, Overwrite, Rank

__all__ = ["extract"]


def extract(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A model, or a file or folder of weights.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The same after training.")],
    output: Destination,
    rank: Rank = None,
    keep: Keep = None,
    role: Annotated[str, typer.Option("--role", help="transformer, unet, text_encoder or text_encoder_2.")] = "transformer",
    targets: Annotated[str, typer.Option("--targets", help="Regular expression of the paths to take.")] = ".*",
    to: Layout = "",
    dtype: Dtype = "",
    overwrite: Overwrite = False,
) -> None:
    """Make an adapter that turns one checkpoint into another, as nearly as its rank allows.

    Example: reelora extract CogVideoX-5b my-finetune style.safetensors --rank 64
    """
    from reelora import recipes

    from .terminal import Terminal

    target = recipes.Target(path=output, layout=to, dtype=dtype, overwrite=overwrite)
    with Terminal() as terminal:
        recipes.extract(base, tuned, target, role=role, rank=rank, keep=keep, targets=targets, listener=terminal)
    print(output)
