"""Everything a caller may catch.

ReeloraError
├── ConfigError            a setting is unknown, impossible, or not what the model can do
├── DataError              clips, captions or cached entries are missing or unusable
├── FileFormatError        the bytes of a file are not what its name or header says
├── ComponentError         a model folder lacks a part, or the part is of another class
├── AdapterError           the weights of an adapter are incomplete or contradict each other
│   ├── MismatchError      the adapter (or spec) does not fit this model
│   └── UnknownScaleError  nothing says how strong the adapter was trained
└── TrainingDivergedError  the loss or a gradient is no finite number any more

A missing or unwritable file is an ``OSError``, as everywhere in Python.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

__all__ = [
    "AdapterError",
    "ComponentError",
    "ConfigError",
    "DataError",
    "FileFormatError",
    "MismatchError",
    "ReeloraError",
    "TrainingDivergedError",
    "UnknownScaleError",
    "first_few",
    "first_line",
    "nearest",
]


class ReeloraError(Exception):
    """Base of all errors that Reelora raises on purpose."""


class ConfigError(ReeloraError):
    """A setting is unknown, impossible, or not what the model can do."""


class DataError(ReeloraError):
    """Clips, captions or cached entries are missing or unusable."""


class FileFormatError(ReeloraError):
    """The bytes of a file are not what its name or header says."""


class ComponentError(ReeloraError):
    """A model folder lacks a part, or the part is of another class."""


class AdapterError(ReeloraError):
    """The weights of an adapter are incomplete or contradict each other."""


class MismatchError(AdapterError):
    """The adapter or spec does not fit this model."""


class UnknownScaleError(AdapterError):
    """Nothing says how strong the adapter was trained."""


class TrainingDivergedError(ReeloraError):
    """The loss or a gradient is no finite number any more."""


def first_few(names: Sequence[str], *, count: int = 3) -> str:
    """The first names of a list, for a message: ``a, b, c ...``."""
    return ", ".join(names[:count]) + (" ..." if len(names) > count else "")


def first_line(error: BaseException) -> str:
    """What an error of another library says first; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the known spelling nearest to ``name``, or all of them if none is near."""
    known = list(known)
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"
