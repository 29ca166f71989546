"""``reelora doctor``"""

import sys
from typing import Annotated

import typer

from reelora.errors import ConfigError

from .options import Alpha, AsJson, Device, Producer, SatConfig
from .printing import print_facts

__all__ = ["doctor"]

MISMATCH = 2


def doctor(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="A model's folder, a hub id, or pocket.")] = None,
    adapter: Annotated[str | None, typer.Argument(metavar="ADAPTER", help="An adapter of any layout.")] = None,
    alpha: Alpha = None,
    producer: Producer = None,
    sat_config: SatConfig = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Say what this machine can do; or try an adapter on a model: what matches, how strong it is, and what it changes.

    Ends with 2 if the adapter cannot act on the model.

    Example: reelora doctor pocket adapter.safetensors
    """
    from reelora import recipes

    from .terminal import Terminal

    if model is None:
        print_facts(recipes.examine_machine(), as_json=as_json)
        return
    if adapter is None:
        raise ConfigError("doctor takes a model and an adapter, or nothing at all: reelora doctor MODEL ADAPTER")
    with Terminal() as terminal:
        found = recipes.examine(
            model,
            adapter,
            alpha=alpha,
            producer=producer,
            sat_config=sat_config or [],
            device=device or "auto",
            listener=terminal,
        )
    print_facts(found.as_json() if as_json else found.facts, as_json=as_json)
    if not as_json:
        for line in "\n".join((*found.problems, *found.advice)).splitlines():
            print(f"! {recipes.plain(line, width=2000)}")
    if found.problems:
        sys.exit(MISMATCH)
