"""Small text files, written whole, and what a file or folder must be."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from reelora.errors import ConfigError
from reelora.tensorio import atomic_path

__all__ = ["check_folder", "check_new", "check_parent", "check_picture", "check_room", "write_new_text", "write_text"]

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def check_picture(path: Path) -> None:
    """Raise ConfigError unless a file is called as a picture is."""
    if path.suffix.lower() not in _PICTURES:
        raise ConfigError(f"{path}: a sheet is a picture; end its name in {', '.join(_PICTURES)}.")


def check_new(path: Path) -> None:
    """Raise ConfigError for a file that is there already."""
    if path.exists():
        raise ConfigError(f"{path} is there already and is left as it is; name another file or delete it.")


def check_parent(path: Path) -> None:
    """Raise OSError that names it where the folder of a file is missing or takes no files."""
    if not path.parent.is_dir():
        raise FileNotFoundError(2, "There is no such folder; make it first", str(path.parent))
    check_folder(path.parent)


def check_room(size_bytes: int, path: Path) -> None:
    """Raise OSError where the disk of a file that is not there yet has no room for so much."""
    free = shutil.disk_usage(path.parent).free
    if size_bytes > free:
        message = f"There is no room for the output: it takes {size_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        raise OSError(28, message, str(path.parent))


def check_folder(path: Path) -> None:
    """Raise OSError that names it unless files can be made in this folder, or the folder itself where it is not there yet.

    Nothing is left behind.
    """
    place = path
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(20, "This is a file, a folder is needed", str(place))
    try:
        with TemporaryDirectory(dir=place, prefix=".reelora-"):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(place)) from error


def write_text(path: Path, text: str) -> None:
    """Write or replace a text file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_new_text(path: Path, text: str) -> None:
    """Write a text file that is not there yet; ConfigError if it is."""
    check_new(path)
    write_text(path, text)
