"""Converting at the width of CogVideoX-5B: memory stays small, whatever the size of the model."""

import pytest

pytestmark = pytest.mark.slow


def test_anonymous_memory_stays_under_500_mb_both_ways(tmp_path):
    from benchmarks.checkpoint import ALLOWANCE, make_checkpoint
    from benchmarks.measured import measure

    source = make_checkpoint(tmp_path / "sat", num_layers=3)
    _, peak = measure("benchmarks.checkpoint", "convert_to_diffusers", source, tmp_path / "diffusers")
    assert peak <= ALLOWANCE
    _, peak = measure("benchmarks.checkpoint", "convert_back", tmp_path / "diffusers", tmp_path / "back")
    assert peak <= ALLOWANCE
