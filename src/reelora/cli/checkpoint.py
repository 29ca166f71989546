"""``reelora checkpoint``"""

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, Dtype, RolePaths, SatConfig, read_role_paths

__all__ = ["checkpoint"]


def checkpoint(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A SAT checkpoint (the folder with `latest`, or a .pt), a diffusers folder, or pocket."
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="DST", help="A new folder.")],
    to: Annotated[str, typer.Option("--to", metavar="FORM", help="diffusers or sat.")],
    sat_config: SatConfig = None,
    role: Annotated[
        list[str] | None, typer.Option("--role", help="Only this role, as often as wanted.", show_default="the whole model")
    ] = None,
    path: RolePaths = None,
    lora: Annotated[
        str, typer.Option("--lora", help="A LoRA in the checkpoint: merge (into the weights) or beside (as an adapter).")
    ] = "merge",
    mp: Annotated[int, typer.Option("--mp", help="Model-parallel shards of a SAT checkpoint: 1, 2, 4 or 8.")] = 1,
    dtype: Dtype = "",
    check: Annotated[bool, typer.Option("--check", help="Read it all again and compare bit by bit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Convert a whole model from SAT to diffusers or back; the source stays as it is.

    Example: reelora checkpoint CogVideoX-5b-sat/transformer CogVideoX-5b --to diffusers --sat-config cogvideox_5b.yaml --check
    """
    from reelora import recipes

    from .terminal import Terminal

    with Terminal() as terminal:
        outcome = recipes.convert_checkpoint(
            source,
            output,
            form=to,
            roles=role,
            sat_config=sat_config,
            paths=read_role_paths(path),
            dtype=dtype,
            lora=lora,
            mp=mp,
            check=check,
            listener=terminal,
        )
    print(json.dumps(outcome.as_json(), ensure_ascii=False) if as_json else output)
