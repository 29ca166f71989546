"""Small text files, written whole and never over another."""

from pathlib import Path

from reelora.errors import ConfigError
from reelora.tensorio import atomic_path

__all__ = ["write_new_text", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Write or replace a text file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_new_text(path: Path, text: str) -> None:
    """Write a text file that is not there yet; ConfigError if it is."""
    if path.exists():
        raise ConfigError(f"{path} is there already and is left as it is; name another file or delete it.")
    write_text(path, text)
