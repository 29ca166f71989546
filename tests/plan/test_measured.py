"""Predicted bytes beside those of a fresh process that really makes the video."""

import pytest
import torch
from peak import measure_peak
from wide_model import save_wide_model

from reelora.components import load_components
from reelora.plan import GenerationJob, Plan, predict, sizes_of
from reelora.pocket import MODEL

WITHIN = 0.15


@pytest.mark.parametrize("num_frames", [9, 17])
def test_the_pocket_model_takes_what_is_predicted(pocket, cpu, num_frames):
    settings = {"num_frames": num_frames, "steps": 2}
    job = GenerationJob.for_model(pocket.facts, **settings)
    predicted = predict(pocket, cpu, job, Plan()).peak_bytes
    assert predicted == pytest.approx(measure_peak(MODEL, **settings), rel=WITHIN)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("dtype", ["", "float32"], ids=["as stored", "cast"])
def test_the_width_of_2b_and_the_published_vae_take_what_is_predicted(tmp_path, cpu, dtype):
    folder = save_wide_model(tmp_path / "wide", num_layers=3)
    settings = {"num_frames": 9, "height": 96, "width": 128, "steps": 1}
    sizes = sizes_of(load_components(folder, roles=[]))
    job = GenerationJob.for_model(sizes.facts, dtype=getattr(torch, dtype) if dtype else None, **settings)
    row = predict(sizes, cpu, job, Plan())
    assert row.peak_bytes == pytest.approx(measure_peak(folder, dtype=dtype, **settings), rel=WITHIN)
