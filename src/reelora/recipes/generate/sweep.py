"""Sweeps: one video for every combination of values, and the plot of them all."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from reelora.errors import ConfigError, nearest
from reelora.generate import Axis, GenerateConfig

from .orders import Order

__all__ = ["read_axes", "swept"]

_OWN = ("prompt", "seed", "image", "video")
_NOT_EACH = ("batch_size", "videos_per_prompt")


def read_axes(texts: Sequence[str], adapters: Sequence[str]) -> list[Axis]:
    """Axes out of ``NAME=VALUE,VALUE...``, where a name is seed, prompt, image, video, a setting, or an adapter's.

    ``adapters`` are their files: each is called by its file's name without the ending. A value is read as TOML, or is text;
    prompts are parted by ``|``. Raises ConfigError for other names (with the nearest), no values, and two axes of one name.
    """
    known = [*_OWN, *(set(GenerateConfig.model_fields) - set(_NOT_EACH)), *map(called, adapters)]
    axes = []
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or name not in known:
            hint = nearest(name, known) if equals else "write NAME=VALUE,VALUE"
            raise ConfigError(f"--grid {text!r}: {name or 'nothing'} is no setting and no adapter here, {hint}")
        if name in {axis.name for axis in axes}:
            raise ConfigError(f"--grid {text!r}: there is an axis {name} already; give all its values in one.")
        parts = values.split("|" if name == "prompt" else ",")
        axes.append(Axis(name=name, values=tuple(_value(part.strip(), name) for part in parts if part.strip())))
    return axes


def called(path: str) -> str:
    """What an adapter's file is called in a sweep."""
    return Path(path).name.removesuffix(".safetensors")


def swept(order: Order, axes: Sequence[Axis], files: Mapping[str, str]) -> list[Order]:
    """An order for every combination, in the order of ``itertools.product``; all have one seed unless that is swept.

    ``files`` are those of the adapters by what they are called.
    """
    names = [axis.name for axis in axes]
    order = replace(order, seed=order.seed or 0)
    return [_with(order, dict(zip(names, values, strict=True)), files) for values in product(*(axis.values for axis in axes))]


def _with(order: Order, values: Mapping[str, Any], files: Mapping[str, str]) -> Order:
    own = {name: value for name, value in values.items() if name in _OWN}
    strengths = {files[name]: value for name, value in values.items() if name in files and name not in _OWN}
    settings = {name: value for name, value in values.items() if name not in own and name not in files}
    return replace(
        order,
        **own,
        strengths={**order.strengths, **strengths},
        settings={**order.settings, **settings},
    )


def _value(text: str, name: str) -> Any:
    if name in ("prompt", "image", "video"):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
