"""A tiny model's folder, an adapter for it, and drawn clips."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_pipeline import KINDS, build_pipeline, make_adapter

from reelora.adapters import Adapter
from reelora.components import load_components
from reelora.generate import Clip, Session


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A model folder for each kind. Tests must not write into them."""
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        build_pipeline(kind).save_pretrained(root / kind)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture(scope="session")
def folder(folders) -> Path:
    return folders["5B"]


@pytest.fixture
def session(folder) -> Session:
    return Session(folder)


@pytest.fixture
def parts(folder):
    return load_components(folder)


@pytest.fixture
def adapter() -> Adapter:
    return make_adapter(seed=3)


@pytest.fixture
def drawn() -> Clip:
    """A red disc that moves right on grey, 17 frames of 64x64."""
    y, x = np.mgrid[:64, :64]
    frames = np.full((17, 64, 64, 3), 128, np.uint8)
    for index, frame in enumerate(frames):
        frame[(y - 32) ** 2 + (x - 12 - 2.5 * index) ** 2 < 121] = (220, 20, 20)
    return Clip(frames=torch.from_numpy(frames), fps=8, metadata={"prompt": "a red disc", "seed": 7})


@pytest.fixture
def edit_scheduler():
    def edit(folder, **changes):
        path = folder / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit
