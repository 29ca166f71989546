"""Folders of tiny models, saved by diffusers and transformers themselves."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from tiny_models import KINDS, build_pipeline


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """A folder for each kind, all in bfloat16 and with the scheduler of the published 2B. Tests must not write into them."""
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        build_pipeline(kind, dtype=torch.bfloat16, scheduler=CogVideoXDDIMScheduler).save_pretrained(root / kind)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture
def model(models, tmp_path) -> Path:
    """A copy of the 5B, to be spoilt."""
    return shutil.copytree(models["5B"], tmp_path / "model")


@pytest.fixture
def edit_json():
    def edit(path, **changes):
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return edit
