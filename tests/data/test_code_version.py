"""Whoever changes what the cache stores is told to raise the version of the code in its keys."""

from pathlib import Path

import pytest
from golden_cache import CODE_VERSION, stored

from reelora.tensorio import open_tensors

GOLDEN = Path(__file__).parents[1] / "golden" / "cache"
_AGAIN = "then run `python tests/golden/make_cache.py`, which keeps what is stored now."

# Encoders round a little differently on other processors, and decoders by one of 255 levels in single pixels; scaling by
# another filter moves an entry by more than ten times as much.
TOLERANCE = 5e-3


@pytest.fixture(scope="module")
def golden():
    return open_tensors(GOLDEN / "entries.safetensors")


def test_what_is_stored_changes_only_with_the_version_of_the_code(golden, tmp_path):
    now = stored(GOLDEN / "clips", tmp_path)
    moved = {name: (tensor - now[name]).norm() / tensor.norm() for name, tensor in golden.items() if name in now}
    changed = [name for name, share in moved.items() if share > TOLERANCE] + sorted(now.keys() ^ set(golden))
    assert not changed, (
        f"The cache stores other values than at version {golden.metadata['code_version']}: {changed}. Entries that users have "
        f"would be taken for what is made now. Raise _CODE_VERSION (now {CODE_VERSION}) in src/reelora/data/entries.py, "
        f"{_AGAIN}"
    )


def test_the_golden_entries_are_of_this_version_of_the_code(golden):
    assert golden.metadata["code_version"] == str(CODE_VERSION), f"_CODE_VERSION was raised: {_AGAIN}"
