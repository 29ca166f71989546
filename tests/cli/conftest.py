"""The command line in this process, and small data sets for it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from films import write_film

from reelora.cli import main
from reelora.pocket import MODEL


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def reelora(capsys, monkeypatch):
    """Runs ``reelora`` with the given arguments."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["reelora", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run


@pytest.fixture
def clips(tmp_path) -> Path:
    """Three captioned films of 17 frames of 64x64."""
    folder = tmp_path / "clips"
    for index in range(3):
        write_film(folder / f"{index}.mp4", 17, noise=index)
        (folder / f"{index}.txt").write_text(f"film number {index}")
    return folder


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the pocket model, to be spoiled."""
    return shutil.copytree(MODEL, tmp_path / "model")


@pytest.fixture
def files(tmp_path):
    """All files below the test's folder with their contents."""

    def read() -> dict[str, bytes]:
        return {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    return read
