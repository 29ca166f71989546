"""What only an accelerator can show."""

import pytest
import torch

from reelora import recipes
from reelora.adapters import LoraSpec
from reelora.components import load_components
from reelora.generate import Session
from reelora.lora import attach
from reelora.pocket import MODEL, judge
from reelora.recipes import DemoPlan, Silent
from reelora.train import read_metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="this machine has no accelerator"),
]


def test_one_seed_draws_the_same_branches_on_every_device():
    weights = []
    for device in ("cpu", torch.accelerator.current_accelerator()):
        transformer = load_components(MODEL, roles=["transformer"], device=device).transformer
        attach(transformer, LoraSpec(rank=4, alpha=4), seed=1)
        weights.append([p.detach().cpu() for p in transformer.parameters() if p.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_a_seed_means_nearly_the_same_video_on_every_device():
    prompt = "a red square stands still on a white background"
    verdicts = [
        judge(Session(MODEL, device=device, dtype=torch.float32).generate(prompt, seed=3).frames.cpu().numpy())
        for device in ("cpu", torch.accelerator.current_accelerator())
    ]
    assert (verdicts[0].colour, verdicts[0].motion) == (verdicts[1].colour, verdicts[1].motion)


def test_the_demo_runs_and_resumes(tmp_path):
    plan = DemoPlan(num_clips=4, num_held_out=1, num_videos=5, steps=4)
    outcome = recipes.demo(tmp_path / "demo", device="auto", seed=0, listener=Silent(), plan=plan)
    (tmp_path / "demo" / "report.html").unlink()
    again = recipes.demo(tmp_path / "demo", device="auto", seed=0, listener=Silent(), plan=plan)
    assert len(read_metrics(outcome.folder / "metrics.jsonl")) == 5
    assert again.stars.shares() == outcome.stars.shares()
