"""Small text files and new folders, written whole and never over another."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from reelora.errors import ConfigError
from reelora.tensorio import atomic_folder, atomic_path

__all__ = ["check_folder", "fresh_folder", "write_new_text", "write_text"]


def check_folder(path: Path) -> None:
    """Raise unless files can be made in this folder, or the folder itself where it is not there yet; nothing is left behind."""
    place = path
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(20, "This is a file, a folder is needed", str(place))
    with TemporaryDirectory(dir=place, prefix=".reelora-"):
        pass


@contextmanager
def fresh_folder(output: Path) -> Iterator[Path]:
    """A hidden neighbour of a folder, which becomes it when the block ends well; errors name what it will be called."""
    fresh = output
    try:
        with atomic_folder(output) as fresh:
            yield fresh
    except OSError as error:
        named = str(error.filename or output).replace(str(fresh), str(output))
        raise OSError(error.errno, error.strerror or str(error), named) from error


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
