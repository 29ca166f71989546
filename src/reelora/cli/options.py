"""Options that several verbs share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reelora.recipes import TrainConfig

__all__ = [
    "AdapterPath",
    "Alpha",
    "AsJson",
    "ConfigFile",
    "Data",
    "Destination",
    "Device",
    "Dtype",
    "Keep",
    "Layout",
    "Model",
    "Overrides",
    "Overwrite",
    "Producer",
    "Rank",
    "RolePaths",
    "SatConfig",
    "read_role_paths",
    "read_train_config",
    "refuse_unused",
]

ConfigFile = Annotated[Path | None, typer.Argument(metavar="RUN.toml", help="Settings of the run; all have defaults.")]
Data = Annotated[Path | None, typer.Option("--data", help="Folder of videos with captions.")]
Model = Annotated[
    str | None, typer.Option("--model", help="A folder in diffusers' layout, a hub id, or pocket.", show_default="pocket")
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...", show_default="auto")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one setting, for example loop.steps=200.")
]
AdapterPath = Annotated[str, typer.Argument(metavar="ADAPTER", help="A file of any layout, a folder with one, or a hub id.")]
Alpha = Annotated[float | None, typer.Option("--alpha", help="The lora_alpha of its training, over what the file says.")]
Producer = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="PRODUCER", help="Who made it, where the file has no alpha: cogvideo-finetune, cogkit, sat."
    ),
]
SatConfig = Annotated[
    list[Path] | None, typer.Option("--sat-config", metavar="YAML", help="YAML of a SAT training; the later ones win.")
]
RolePaths = Annotated[
    list[str] | None,
    typer.Option("--path", metavar="ROLE=PATH", help="Where a role comes from, instead of where the model says: vae=FOLDER."),
]
Destination = Annotated[Path, typer.Argument(metavar="OUTPUT", help="FILE.safetensors, FILE.pt (SAT) or a new folder (PEFT).")]
Layout = Annotated[
    str,
    typer.Option("--to", metavar="LAYOUT", help="diffusers, peft, kohya, fun, comfyui or sat.", show_default="by the ending"),
]
Dtype = Annotated[str, typer.Option("--dtype", help="fp32, bf16 or fp16.", show_default="as stored")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")]
Rank = Annotated[int | None, typer.Option("--rank", help="At most this rank in every module.")]
Keep = Annotated[float | None, typer.Option("--keep", metavar="SHARE", help="The smallest ranks that keep this energy: 0.99.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


def read_role_paths(pairs: list[str] | None) -> dict[str, Path]:
    """``ROLE=PATH`` pairs; ConfigError for what is none."""
    from reelora.errors import ConfigError

    split = {pair: pair.partition("=") for pair in pairs or ()}
    if wrong := [pair for pair, (role, _, path) in split.items() if not role or not path]:
        raise ConfigError(f"--path {wrong[0]!r} is no ROLE=PATH; an example is vae=CogVideoX-2b/vae.")
    return {role: Path(path) for role, _, path in split.values()}


def refuse_unused(given: "Mapping[str, object]", where: str) -> None:
    """Raise ConfigError for options, by name, that were given (are neither None nor False) and have no say in a case."""
    from reelora.errors import ConfigError

    if odd := [name for name, value in given.items() if value is not None and value is not False]:
        raise ConfigError(f"{', '.join(odd)} would have no say {where}: leave {'it' if len(odd) == 1 else 'them'} out.")


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
