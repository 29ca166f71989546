"""Sweeps: one video for every combination of values, and the plot of them all."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from reelora.errors import ConfigError, first_few, nearest
from reelora.generate import Axis, GenerateConfig

from .orders import Order

__all__ = ["read_axes", "swept"]

_OWN = ("prompt", "seed", "image", "video")
_NOT_EACH = ("batch_size", "videos_per_prompt")


def read_axes(texts: Sequence[str], adapters: Sequence[str]) -> list[Axis]:
    """Axes out of ``NAME=VALUE,VALUE...``, where a name is seed, prompt, image, video, a setting, or an adapter's.

    ``adapters`` are their files: each is called by its file's name without the ending. A value is read as TOML, or is text;
    prompts are parted by ``|``. Raises ConfigError for other names (with the nearest), names that mean two things, no values,
    values that are no strength or no seed, and two axes of one name.
    """
    settings = [*_OWN, *(set(GenerateConfig.model_fields) - set(_NOT_EACH))]
    known = [*settings, *map(called, adapters)]
    axes = []
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or name not in known:
            hint = nearest(name, known) if equals else "write NAME=VALUE,VALUE"
            raise ConfigError(f"--grid {text!r}: {name or 'nothing'} is no setting and no adapter here, {hint}")
        if name in {axis.name for axis in axes}:
            raise ConfigError(f"--grid {text!r}: there is an axis {name} already; give all its values in one.")
        files = [file for file in adapters if called(file) == name]
        _check_name(name, files, is_setting=name in settings)
        parts = [part.strip() for part in values.split("|" if name == "prompt" else ",") if part.strip()]
        axis = Axis(name=name, values=tuple(_value(part, name) for part in parts))
        _check_values(axis, text, are_strengths=bool(files))
        axes.append(axis)
    return axes


def _check_name(name: str, files: Sequence[str], *, is_setting: bool) -> None:
    """Raise ConfigError for a name that means two things."""
    if len(files) + is_setting > 1:
        what = "is a setting too" if is_setting else f"are {len(files)} files"
        raise ConfigError(f"--grid {name}: adapters called so {what}: {first_few(files)}. Rename what is to be swept.")


def _check_values(axis: Axis, text: str, *, are_strengths: bool) -> None:
    """Raise ConfigError for strengths that are no finite numbers, and seeds that are not whole."""
    if are_strengths and (odd := [value for value in axis.values if not _is_finite(value)]):
        raise ConfigError(f"--grid {text!r}: {odd[0]!r} is no strength; write numbers, as in {axis.name}=0,0.5,1.")
    if axis.name == "seed" and (odd := [value for value in axis.values if type(value) is not int]):
        raise ConfigError(f"--grid {text!r}: {odd[0]!r} is no seed; write whole numbers, as in seed=1,2.")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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
