"""A file appears whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_folder", "atomic_path"]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Lend a fresh path beside ``path``; what is written there takes the place of ``path`` when the block ends well.

    The temporary path has the same suffix, since writers of images and videos choose their format by it. On success
    the bytes are flushed to the disk and renamed in one step; on any failure, Ctrl-C included, they are removed and
    ``path`` is as it was. Raises OSError that names ``path`` where its folder is missing or cannot take the file.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(2, "There is no such folder; make it first", str(path.parent))
    temporary = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(6)}{path.suffix}")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        if error.filename not in (None, str(temporary), temporary):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Lend a fresh folder beside ``path``, which becomes the new folder ``path`` when the block ends well.

    On any failure, Ctrl-C included, it is removed with all that is in it. Raises FileExistsError where ``path`` exists, OSError
    where its parent is missing or cannot take it; errors name files inside by what they would be called.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(17, "This exists already; name a new folder", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(2, "There is no such folder; make it first", str(path.parent))
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}")
    try:
        temporary.mkdir()
        yield temporary
        for entry in temporary.rglob("*"):
            _flush(entry)
        temporary.rename(path)
        _flush(path.parent)
    except OSError as error:
        named = str(error.filename or path).replace(str(temporary), str(path))
        raise OSError(error.errno, error.strerror or str(error), named) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: Path) -> None:
    """Make the disk hold what the page cache holds of a file, or of a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
