"""Converting at the width of CogVideoX-5B: memory stays small, whatever the size of the model."""

import pytest

pytestmark = pytest.mark.slow

NOISE = 20_000_000
"""Bytes that an interpreter takes here and there; a tensor that stays for each block would be 19 MB a block."""


def test_anonymous_memory_stays_under_500_mb_both_ways_and_does_not_grow_with_the_depth(tmp_path):
    from benchmarks.checkpoint import ALLOWANCE, make_checkpoint
    from benchmarks.measured import measure

    peaks = {}
    for depth in (2, 6):
        folder = tmp_path / str(depth)
        source = make_checkpoint(folder / "sat", num_layers=depth)
        _, there = measure("benchmarks.checkpoint", "convert_to_diffusers", source, folder / "diffusers")
        _, back = measure("benchmarks.checkpoint", "convert_back", folder / "diffusers", folder / "back")
        peaks[depth] = (there, back)
    assert max(peaks[6]) <= ALLOWANCE
    assert all(deep <= shallow + NOISE for shallow, deep in zip(peaks[2], peaks[6], strict=True))
