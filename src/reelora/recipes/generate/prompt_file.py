"""A file of prompts: one on each line, or one JSON object on each line."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from reelora.errors import ConfigError, nearest
from reelora.generate import GenerateConfig
from reelora.tensorio import expanded

from .orders import Order

__all__ = ["read_prompts"]

_OWN = ("prompt", "seed", "adapters", "image", "video", "output")
_NOT_EACH = ("seed", "batch_size", "videos_per_prompt")
"""Settings that belong to the whole call."""


def read_prompts(path: Path, common: Order) -> list[Order]:
    """The orders of a file, each line over what ``common`` says.

    ``.jsonl`` has objects with ``prompt`` and, as wanted, ``seed``, ``image``, ``video``, ``output``, ``adapters`` (a list of
    ``FILE=STRENGTH``, or an object with strengths by file) and any setting of a video; any other file has plain prompts. Empty
    lines are left out.

    Raises ConfigError that names the line for what is no such object, and OSError where the file cannot be read.
    """
    try:
        lines = expanded(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no text in UTF-8: {error}") from error
    read = _from_json if path.suffix.lower() == ".jsonl" else _from_text
    orders = [read(line.strip(), common, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not orders:
        raise ConfigError(f"{path}: has no prompt: write one on each line.")
    return orders


def _from_text(line: str, common: Order, where: str) -> Order:
    return replace(common, prompt=line)


def _from_json(line: str, common: Order, where: str) -> Order:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: is no JSON: {error}") from error
    if not isinstance(told, dict) or not isinstance(told.get("prompt"), str):
        raise ConfigError(f'{where}: has to be an object with a prompt, such as {{"prompt": "a red circle", "seed": 3}}.')
    settings = set(GenerateConfig.model_fields) - set(_NOT_EACH)
    for name in told:
        if name not in settings and name not in _OWN:
            raise ConfigError(f"{where}: {name} is unknown: {nearest(name, [*settings, *_OWN])}")
    texts = [name for name in ("image", "video", "output") if not isinstance(told.get(name), str | None)]
    seed = told.get("seed", common.seed)
    if texts or not isinstance(seed, int | None) or isinstance(seed, bool):
        raise ConfigError(f"{where}: {(texts or ['seed'])[0]} is {told[(texts or ['seed'])[0]]!r}; it is of another kind.")
    own = {name: value for name, value in told.items() if name in settings}
    return replace(
        common,
        prompt=told["prompt"],
        seed=seed,
        adapters=_adapters(told["adapters"], where) if "adapters" in told else common.adapters,
        image=told.get("image", common.image),
        video=told.get("video", common.video),
        output=told.get("output"),
        settings={**common.settings, **own},
    )


def _adapters(told: Any, where: str) -> tuple[str, ...]:
    if isinstance(told, Mapping) and all(isinstance(value, int | float) for value in told.values()):
        return tuple(f"{path}={strength}" for path, strength in told.items())
    if isinstance(told, list) and all(isinstance(text, str) for text in told):
        return tuple(told)
    raise ConfigError(f'{where}: adapters are {told!r}; write ["style.safetensors=0.8"] or {{"style.safetensors": 0.8}}.')
