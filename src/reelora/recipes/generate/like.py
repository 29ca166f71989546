"""An earlier video as an order: what it says of itself, checked against the files that are here now."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reelora.errors import ConfigError, first_few
from reelora.generate import GenerateConfig, read_video_metadata
from reelora.recipes.machine import DTYPES, Precision, check_precision, name_of_dtype

from .orders import Order

__all__ = ["Likeness", "read_likeness"]

_SETTINGS = set(GenerateConfig.model_fields) - {"seed", "batch_size", "videos_per_prompt"}
_INPUTS = ("image", "video")


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """What an earlier video was made of."""

    order: Order
    model: str
    precision: Precision
    fingerprint: str
    """Of its base."""
    adapters: Mapping[str, str]
    """Content hash by file."""
    notes: tuple[str, ...]

    def check(self, fingerprint: str, adapters: Mapping[str, str]) -> None:
        """Raise ConfigError where the base or an adapter is another one by now."""
        changed = [file for file, told in self.adapters.items() if file in adapters and adapters[file] != told]
        if fingerprint != self.fingerprint:
            changed.insert(0, self.model)
        if changed:
            raise ConfigError(
                f"{first_few(changed)}: has other weights than the video was made with, so that it would be another video. "
                "Name the right ones with --model and --adapter, or leave --like out."
            )


def read_likeness(path: Path) -> Likeness:
    """The order that an earlier video came from.

    Raises what `read_video_metadata` raises, and ConfigError for a video that does not say where its parts came from, and for
    an input that is gone or has changed.
    """
    told = read_video_metadata(path)
    if missing := [name for name in ("prompt", "seed", "model", "dtype", "adapters") if name not in told]:
        raise ConfigError(f"{path}: says nothing of its {', '.join(missing)}; only a single video of ours can be made again.")
    model = told["model"].get("source") or told["model"].get("hub_id")
    if not model or any("file" not in adapter for adapter in told["adapters"]):
        raise ConfigError(f"{path}: was made of a model or an adapter in memory, which no file is named for.")
    precisions = {name_of_dtype(dtype): name for name, dtype in DTYPES.items()}
    inputs = {name: _input(path, name, told[name]) for name in _INPUTS if name in told}
    order = Order(
        prompt=told["prompt"],
        seed=told["seed"],
        adapters=tuple(f"{adapter['file']}={adapter['strength']}" for adapter in told["adapters"]),
        settings={name: value for name, value in told.items() if name in _SETTINGS},
        image=inputs.get("image"),
        video=inputs.get("video"),
    )
    return Likeness(
        order=order,
        model=model,
        precision=check_precision(precisions[told["dtype"]]),
        fingerprint=told["model"]["fingerprint"],
        adapters={adapter["file"]: adapter["content_hash"] for adapter in told["adapters"]},
        notes=tuple(_notes(path, told)),
    )


def _input(path: Path, name: str, told: Mapping[str, Any]) -> str:
    """The file of an input, as long as it is the same."""
    file = Path(told.get("file", ""))
    if not told.get("file") or not file.expanduser().is_file():
        raise ConfigError(f"{path}: its {name} {str(file) if told.get('file') else ''} is not here: give it with --{name}.")
    if hashlib.sha256(file.expanduser().read_bytes()).hexdigest() != told["sha256"]:
        raise ConfigError(f"{path}: its {name} {file} was changed since: give the right one with --{name}.")
    return str(file)


def _notes(path: Path, told: Mapping[str, Any]) -> list[str]:
    if told.get("batch_size", 1) == 1:
        return []
    return [f"{path} was made in a batch of {told['batch_size']}; alone it is the same but for rounding."]
