"""Paths as people type them."""

from pathlib import Path

__all__ = ["expanded"]


def expanded(path: str | Path) -> Path:
    """A path with ``~`` replaced by the home folder that it means. Raises FileNotFoundError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(2, "Nobody of this name has a home folder here", str(path)) from error
