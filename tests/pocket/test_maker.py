"""The script that makes the pocket model, with hardly any steps."""

from dataclasses import replace

import pytest
import torch

from reelora.generate import Session
from reelora.pocket import make, train_transformer, train_vae

pytestmark = pytest.mark.slow


@pytest.fixture
def hasty(monkeypatch):
    for module, names in ((train_vae, ("FRAMES", "CLIPS")), (train_transformer, ("PLAN",))):
        for name in names:
            monkeypatch.setattr(module, name, replace(getattr(module, name), num_steps=2, checkpoint_every=1))
    monkeypatch.setattr(train_transformer, "_NUM_CLIPS", 80)
    monkeypatch.setattr(train_transformer, "_NUM_NAMELESS", 40)
    monkeypatch.setattr(make, "QUESTIONS", {"known": {"held_out": False, "count": 2, "steps": 2}})


def test_it_leaves_a_model_that_runs_and_a_second_start_trains_nothing(hasty, tmp_path):
    lines: list[str] = []
    make.main(tmp_path, torch.device("cpu"), lines.append)
    weights = (tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert Session(tmp_path / "model").generate("a red circle", steps=1).frames.shape == (17, 64, 64, 3)
    lines.clear()
    make.main(tmp_path, torch.device("cpu"), lines.append)
    assert sum("resumed at step 2" in line for line in lines) == 3
    assert (tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
