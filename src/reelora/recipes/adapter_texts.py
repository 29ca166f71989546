"""Adapters as a command line names them: ``FILE[=STRENGTH][,alpha=64|,from=PRODUCER]``."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from reelora.adapters import PRODUCERS, Adapter, read_adapter
from reelora.errors import ConfigError, UnknownScaleError
from reelora.tensorio import expanded

__all__ = ["AdapterFiles", "read_adapters", "split_adapter"]

_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""What ends so is the name of a file, as in ``step=100.safetensors``, and no strength."""


class AdapterFiles:
    """Reads adapters, each file once, however often and by whatever path it is named."""

    def __init__(self) -> None:
        self._read: dict[tuple[object, ...], Adapter] = {}

    def read(self, texts: Sequence[str]) -> dict[str, tuple[Adapter, float]]:
        """Adapters that act together, by file as it is named: each from ``FILE[=STRENGTH][,alpha=64|,from=PRODUCER]``.

        Raises ConfigError for a file that is given twice and for options that cannot be read, and what reading a file raises.
        """
        found: dict[str, tuple[Adapter, float]] = {}
        files: set[str] = set()
        for text in texts:
            path, strength, options = _parsed(text)
            file = _file(path)
            if file in files:
                raise ConfigError(f"{path} is given twice: name each adapter once, with the strength that it should have.")
            files.add(file)
            found[path] = self._adapter(file, path, options), strength
        return found

    def _adapter(self, file: str, path: str, options: Mapping[str, Any]) -> Adapter:
        way = (file, *sorted(options.items()))
        if way not in self._read:
            self._read[way] = _usable(path, options)
        return self._read[way]


def read_adapters(texts: Sequence[str]) -> dict[str, tuple[Adapter, float]]:
    """Adapters that act together; see ``AdapterFiles.read``."""
    return AdapterFiles().read(texts)


def _file(path: str) -> str:
    """The same for all paths to one file; a hub id as it is."""
    place = expanded(path)
    return os.path.realpath(place) if place.exists() else path


def _usable(path: str, options: Mapping[str, Any]) -> Adapter:
    adapter = read_adapter(path, **options)
    if any(pair.scale is None for pair in adapter.pairs.values()):
        raise UnknownScaleError(
            f"{path} does not say how strong it was trained ({adapter.scale_source}). Write --adapter {path},alpha=64 with "
            f"the alpha of its training, or --adapter {path},from=PRODUCER ({', '.join(PRODUCERS)})."
        )
    return adapter


def split_adapter(text: str) -> str:
    """The file of ``FILE[=STRENGTH][,alpha=64|,from=PRODUCER]``. Raises ConfigError for options that cannot be read."""
    return _parsed(text)[0]


def _parsed(text: str) -> tuple[str, float, dict[str, Any]]:
    """File, strength, and how to read it; ``=`` and ``,`` inside a name are kept where nothing we know follows."""
    options: dict[str, Any] = {}
    while match := re.fullmatch(r"(.+),(alpha|from)=([^,=]*)", text):
        text, name, value = match.groups()
        options["producer" if name == "from" else name] = value if name == "from" else _number(value, f"alpha of {text}")
    if (match := re.fullmatch(r"(.+)=([^=/]*)", text)) and not match[2].endswith(_ENDINGS):
        return match[1], _number(match[2], f"the strength of {match[1]}"), options
    return text, 1.0, options


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{what} is {text!r}; it has to be a number, as in --adapter FILE=0.8,alpha=64")
    return value
