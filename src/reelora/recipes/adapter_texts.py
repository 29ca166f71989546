"""Adapters as a command line names them: ``FILE[=STRENGTH][,alpha=64|,from=PRODUCER]``."""

import math
import re
from collections.abc import Sequence
from typing import Any

from reelora.adapters import PRODUCERS, Adapter, read_adapter
from reelora.errors import ConfigError, UnknownScaleError

__all__ = ["read_adapters", "split_adapter"]


def read_adapters(texts: Sequence[str]) -> dict[str, tuple[Adapter, float]]:
    """Adapters by file, each from ``FILE[=STRENGTH][,alpha=64|,from=PRODUCER]``.

    Raises ConfigError for a file that is given twice and for options that cannot be read, and what reading a file raises.
    """
    found: dict[str, tuple[Adapter, float]] = {}
    for text in texts:
        path, strength, options = _parsed(text)
        if path in found:
            raise ConfigError(f"{path} is given twice: name each adapter once, with the strength that it should have.")
        adapter = read_adapter(path, **options)
        if any(pair.scale is None for pair in adapter.pairs.values()):
            raise UnknownScaleError(
                f"{path} does not say how strong it was trained ({adapter.scale_source}). Write --adapter {path},alpha=64 with "
                f"the alpha of its training, or --adapter {path},from=PRODUCER ({', '.join(PRODUCERS)})."
            )
        found[path] = adapter, strength
    return found


def split_adapter(text: str) -> str:
    """The file of ``FILE[=STRENGTH][,alpha=64|,from=PRODUCER]``. Raises ConfigError for options that cannot be read."""
    return _parsed(text)[0]


def _parsed(text: str) -> tuple[str, float, dict[str, Any]]:
    """File, strength, and how to read it; ``=`` and ``,`` inside a name are kept where nothing we know follows."""
    options: dict[str, Any] = {}
    while match := re.fullmatch(r"(.+),(alpha|from)=([^,=]*)", text):
        text, name, value = match.groups()
        options["producer" if name == "from" else name] = value if name == "from" else _number(value, f"alpha of {text}")
    if match := re.fullmatch(r"(.+)=([^=/]*)", text):
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
