"""Small text files of SAT: which iteration a checkpoint is of, and YAML configs."""

import re
from pathlib import Path

from reelora.errors import FileFormatError

__all__ = ["SAT_TRACKER", "read_iteration", "read_sat_yaml"]

SAT_TRACKER = "latest"
"""Names the folder of an iteration, beside which it lies. Source: DeepSpeed's checkpoints, as SAT writes them."""
_MOST_YAML_BYTES = 1_000_000
"""SAT's own have some thousand; the parser takes a second for each megabyte."""

_ITERATION = re.compile(r"[1-9]\d{0,11}|release")
_LONGEST = 64


def read_iteration(folder: Path) -> str:
    """What ``latest`` in a folder says. Raises FileFormatError where that is no iteration, OSError where there is no file."""
    with (folder / SAT_TRACKER).open("rb") as file:
        said = file.read(_LONGEST).decode(errors="replace").strip()
    if not _ITERATION.fullmatch(said):
        raise FileFormatError(
            f"{folder / SAT_TRACKER} says {said[:40]!r}; it has to name an iteration, such as 1000, or 'release'."
        )
    return said


def read_sat_yaml(path: Path) -> bytes:
    """The bytes of a config, not parsed. Raises FileFormatError for a file that is too large to be one."""
    if (size_bytes := path.stat().st_size) > _MOST_YAML_BYTES:
        raise FileFormatError(f"{path}: {size_bytes:,} bytes are no SAT YAML, which has at most {_MOST_YAML_BYTES:,}.")
    return path.read_bytes()
