"""``reelora resize``"""

import json
from typing import Annotated

import typer

from .options import AdapterPath, Alpha, AsJson, Destination, Dtype, Keep, Layout, Overwrite, Producer, Rank, SatConfig

__all__ = ["resize"]


def resize(
    source: AdapterPath,
    output: Destination,
    rank: Rank = None,
    keep: Keep = None,
    size: Annotated[str | None, typer.Option("--size", help="Shared by all modules where it matters most: 50MB.")] = None,
    to: Layout = "",
    dtype: Dtype = "",
    alpha: Alpha = None,
    producer: Producer = None,
    sat_config: SatConfig = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Change an adapter's rank, each module to the best approximation there is.

    Example: reelora resize style.safetensors small.safetensors --keep 0.99
    """
    from reelora import recipes

    from .terminal import Terminal

    target = recipes.Target(path=output, layout=to, dtype=dtype, overwrite=overwrite)
    size_bytes = None if size is None else recipes.parse_size(size)
    with Terminal() as terminal:
        adapter = recipes.read_one(source, alpha=alpha, producer=producer, sat_config=sat_config or [], listener=terminal)
        resized = recipes.resize(adapter, target, rank=rank, keep=keep, size_bytes=size_bytes, listener=terminal)
    print(json.dumps(resized.as_json()) if as_json else output)
