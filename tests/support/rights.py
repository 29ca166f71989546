"""A user who may not read or write everything, also where the tests run as root."""

import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

NOBODY = 65534


@contextmanager
def as_a_stranger():
    """The rights of a file count inside: root, who is above them, becomes another user for as long."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@contextmanager
def folder_for_strangers():
    """A new folder on whose path everybody may go, which pytest's own folders are not."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def only_to_read(folder: Path):
    """Inside, the user may read all that is in a folder and change nothing of it."""
    entries = [folder, *folder.rglob("*")]
    before = {entry: entry.stat().st_mode for entry in entries}
    for entry in entries:
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    try:
        with as_a_stranger():
            yield
    finally:
        for entry, mode in before.items():
            entry.chmod(mode)
