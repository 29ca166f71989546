"""A tiny model's folder, an adapter for it, and drawn clips."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import KINDS, build_pipeline

from reelora.adapters import Adapter, LoraSpec, Pair
from reelora.components import load_components
from reelora.generate import Clip, Session

NAMES = [f"transformer.transformer_blocks.{i}.attn1.{leaf}" for i in range(2) for leaf in ("to_q", "to_v", "to_out.0")]
SPEC = LoraSpec(rank=4, alpha=2, target_modules=("to_q", "to_v", "to_out.0"))


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
def make_adapter():
    def make(*, seed: int, width: int = 32) -> Adapter:
        draw = torch.Generator().manual_seed(seed)
        pairs = {
            name: Pair(torch.randn(4, width, generator=draw), torch.randn(width, 4, generator=draw), 0.5) for name in NAMES
        }
        return Adapter(pairs=pairs, spec=SPEC, layout="memory", scale_source="the test")

    return make


@pytest.fixture
def adapter(make_adapter) -> Adapter:
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
