"""A small data set."""

import shutil
from pathlib import Path

import pytest
from films import write_film


@pytest.fixture(scope="session")
def drawn_clips(tmp_path_factory) -> Path:
    """Three films of noise with captions."""
    folder = tmp_path_factory.mktemp("drawn")
    for index, caption in enumerate(["a red star", "a blue star", "a star that grows"]):
        write_film(folder / f"{index}.mp4", 9, noise=index)
        (folder / f"{index}.txt").write_text(caption)
    return folder


@pytest.fixture
def data_folder(drawn_clips: Path, tmp_path: Path) -> Path:
    """A copy of the drawn clips that a test may change."""
    return shutil.copytree(drawn_clips, tmp_path / "clips")
