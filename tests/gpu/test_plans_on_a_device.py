"""Every placement makes the same picture on an accelerator, in about the memory that is predicted."""

from typing import get_args

import pytest
import torch

from reelora.components import load_components
from reelora.generate.placement import place, unplace
from reelora.plan import GenerationJob, Placement, Plan, device_facts, predict, sizes_of
from reelora.pocket import MODEL

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


@pytest.fixture
def pipeline():
    pipeline = load_components(MODEL, dtype=torch.float32).pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def paint(pipeline):
    size = {"num_frames": 17, "height": 64, "width": 64, "num_inference_steps": 2}
    with torch.no_grad():
        return pipeline("a red circle", **size, generator=torch.Generator().manual_seed(0), output_type="pt").frames.cpu()


@pytest.mark.parametrize("placement", get_args(Placement))
def test_placement_never_changes_numbers(pipeline, placement):
    device = torch.device("cuda")
    place(pipeline, Plan(), device)
    resident = paint(pipeline)
    place(pipeline, Plan(placement=placement, use_streams=placement == "group"), device)
    assert torch.equal(paint(pipeline), resident)
    unplace(pipeline)
    assert all(parameter.device.type == "cpu" for parameter in pipeline.transformer.parameters())


def test_the_predicted_bytes_are_those_that_tensors_take(pipeline):
    device = torch.device("cuda")
    place(pipeline, Plan(), device)
    paint(pipeline)
    torch.cuda.reset_peak_memory_stats()
    paint(pipeline)
    sizes = sizes_of(load_components(MODEL, roles=[]))
    job = GenerationJob.for_model(sizes.facts, dtype=torch.float32)
    predicted = predict(sizes, device_facts(device), job, Plan()).peak_bytes
    assert predicted == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.25)  # cuDNN takes room for itself too
    unplace(pipeline)
