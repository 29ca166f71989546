"""Options that several verbs share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from reelora.recipes import TrainConfig

__all__ = ["ConfigFile", "Data", "Device", "Model", "Overrides", "read_train_config"]

ConfigFile = Annotated[Path | None, typer.Argument(metavar="[RUN.toml]", help="Settings of the run; all have defaults.")]
Data = Annotated[Path | None, typer.Option("--data", help="Folder of videos with captions.")]
Model = Annotated[
    str | None, typer.Option("--model", help="A folder in diffusers' layout, a hub id, or pocket.", show_default="pocket")
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...", show_default="auto")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one setting, for example loop.steps=200.")
]


def read_train_config(
    file: Path | None, overrides: list[str] | None, **named: Path | str | int | float | None
) -> "TrainConfig":
    """The settings in ``file`` with ``--set`` pairs over them and the options that have names of their own over those.

    ``data__folder`` stands for ``data.folder``.
    """
    from reelora.recipes import TrainConfig

    pairs = [f"{name.replace('__', '.')}={_quoted(value)}" for name, value in named.items() if value is not None]
    pairs = [*(overrides or []), *pairs]
    return TrainConfig.read_toml(file, overrides=pairs) if file else TrainConfig.with_overrides(pairs)


def _quoted(value: Path | str | int | float) -> str:
    import json

    return json.dumps(str(value), ensure_ascii=False) if isinstance(value, Path | str) else str(value)
