"""``reelora merge``"""

from typing import Annotated

import typer

from .options import Destination, Dtype, Keep, Layout, Overwrite, Rank

__all__ = ["merge"]


def merge(
    output: Destination,
    adapter: Annotated[
        list[str],
        typer.Option("--adapter", "-a", metavar="FILE[=STRENGTH][,alpha=64|,from=PRODUCER]", help="As often as wanted."),
    ],
    method: Annotated[str, typer.Option("--method", help="sum (exact), ties, dare, dare_ties or magnitude_prune.")] = "sum",
    rank: Rank = None,
    keep: Keep = None,
    density: Annotated[float | None, typer.Option("--density", help="Share of entries that stays; not for sum.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of what dare drops.")] = 0,
    to: Layout = "",
    dtype: Dtype = "",
    overwrite: Overwrite = False,
) -> None:
    """Make one adapter of several; as a sum it does exactly what they do together.

    Example: reelora merge both.safetensors -a style.safetensors=0.7 -a motion.safetensors=0.5 --keep 0.999
    """
    from reelora import recipes

    from .terminal import Terminal

    target = recipes.Target(path=output, layout=to, dtype=dtype, overwrite=overwrite)
    with Terminal() as terminal:
        recipes.merge(adapter, target, method=method, rank=rank, keep=keep, density=density, seed=seed, listener=terminal)
    print(output)
