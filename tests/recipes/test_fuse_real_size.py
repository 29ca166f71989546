"""Fusing on disk at the width of CogVideoX-2B: memory stays small, whatever the size of the model."""

import pytest

pytestmark = pytest.mark.slow


def test_anonymous_memory_stays_under_300_mb(tmp_path):
    from benchmarks.measured import measure
    from benchmarks.offline_fuse import ALLOWANCE, make_files

    base, adapter = make_files(tmp_path, num_layers=4)
    _, peak = measure("benchmarks.offline_fuse", "fuse_ours", base, adapter, tmp_path / "out")
    assert peak <= ALLOWANCE
