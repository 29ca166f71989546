"""An earlier video as an order: what it says of itself, checked against the files that are here now."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reelora.errors import ConfigError, FileFormatError, first_few
from reelora.generate import GenerateConfig, read_video_metadata
from reelora.recipes.machine import DTYPES, Precision, check_precision, name_of_dtype
from reelora.tensorio import expanded

from .orders import Order

__all__ = ["Likeness", "read_likeness"]

_SETTINGS = set(GenerateConfig.model_fields) - {"seed", "batch_size", "videos_per_prompt"}


class _Told(BaseModel):
    """Base of what a file says of itself, which anybody may have written; what else it says is left alone."""

    model_config = ConfigDict(frozen=True, strict=True)


class _ToldModel(_Told):
    source: str | None = None
    hub_id: str | None = None
    fingerprint: str


class _ToldAdapter(_Told):
    file: str | None = None
    strength: Annotated[float, Field(allow_inf_nan=False)]
    content_hash: str


class _ToldInput(_Told):
    file: str | None = None
    sha256: str


class _ToldVideo(_Told):
    """What has to be known of a video to make it again."""

    prompt: str
    seed: int
    model: _ToldModel
    dtype: Literal["bfloat16", "float16", "float32"]
    adapters: list[_ToldAdapter]
    image: _ToldInput | None = None
    video: _ToldInput | None = None
    batch_size: int = 1


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

    Raises what `read_video_metadata` raises, FileFormatError where what it says is not what we write, and ConfigError for a
    video that does not say where its parts came from, and for an input that is gone or has changed.
    """
    everything = read_video_metadata(path)
    told = _checked(path, everything)
    model = told.model.source or told.model.hub_id
    files = [adapter.file for adapter in told.adapters if adapter.file]
    if not model or len(files) < len(told.adapters):
        raise ConfigError(f"{path}: was made of a model or an adapter in memory, which no file is named for.")
    precisions = {name_of_dtype(dtype): name for name, dtype in DTYPES.items()}
    inputs = {name: _input(path, name, given) for name, given in (("image", told.image), ("video", told.video)) if given}
    order = Order(
        prompt=told.prompt,
        seed=told.seed,
        adapters=tuple(f"{file}={adapter.strength}" for file, adapter in zip(files, told.adapters, strict=True)),
        settings={name: value for name, value in everything.items() if name in _SETTINGS},
        image=inputs.get("image"),
        video=inputs.get("video"),
    )
    return Likeness(
        order=order,
        model=model,
        precision=check_precision(precisions[told.dtype]),
        fingerprint=told.model.fingerprint,
        adapters={file: adapter.content_hash for file, adapter in zip(files, told.adapters, strict=True)},
        notes=tuple(_notes(path, told)),
    )


def _checked(path: Path, told: Mapping[str, Any]) -> _ToldVideo:
    needed = [name for name, row in _ToldVideo.model_fields.items() if row.is_required()]
    if missing := [name for name in needed if name not in told]:
        raise ConfigError(f"{path}: says nothing of its {', '.join(missing)}; only a single video of ours can be made again.")
    try:
        return _ToldVideo.model_validate(told)
    except ValidationError as error:
        odd = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        raise FileFormatError(
            f"{path}: what it says of how it was made is not what reelora writes: {first_few(odd)}."
        ) from error


def _input(path: Path, name: str, told: _ToldInput) -> str:
    """The file of an input, as long as it is the same."""
    file = Path(told.file or "")
    if not told.file or not expanded(file).is_file():
        raise ConfigError(f"{path}: its {name} {told.file or ''} is not here: give it with --{name}.")
    if hashlib.sha256(expanded(file).read_bytes()).hexdigest() != told.sha256:
        raise ConfigError(f"{path}: its {name} {file} was changed since: give the right one with --{name}.")
    return told.file


def _notes(path: Path, told: _ToldVideo) -> list[str]:
    if told.batch_size == 1:
        return []
    return [f"{path} was made in a batch of {told.batch_size}; alone it is the same but for rounding."]
