"""Small text files, written whole and never over another."""

from pathlib import Path
from tempfile import TemporaryDirectory

from reelora.errors import ConfigError
from reelora.tensorio import atomic_path

__all__ = ["check_folder", "write_new_text", "write_text"]


def check_folder(path: Path) -> None:
    """Raise unless files can be made in this folder, or the folder itself where it is not there yet; nothing is left behind."""
    place = path
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(20, "This is a file, a folder is needed", str(place))
    with TemporaryDirectory(dir=place, prefix=".reelora-"):
        pass


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
