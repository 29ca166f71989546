"""``reelora cache``: ls, verify, prune."""

import json

import pytest

from reelora.data import CachedClips, in_use


@pytest.fixture
def cached(reelora, clips):
    """A folder of clips with a cache."""
    assert reelora("precompute", "--data", clips).code == 0
    return clips


def spoil(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_cache_is_listed_verified_repaired_and_pruned(reelora, cached):
    listed = json.loads(reelora("cache", "ls", cached, "--json").out)
    (row,) = listed["sets"]
    assert (row["clips"], row["entries"], row["buckets"], row["fps"]) == (3, 7, ["17x64x64"], 8)
    assert "3 clips of 17x64x64 at 8 fps" in reelora("cache", "ls", cached / ".reelora").out
    assert (reelora("cache", "verify", cached).code, listed["damaged"]) == (0, [])

    entry = sorted((cached / ".reelora" / "latents").iterdir())[0]
    spoil(entry)
    found = reelora("cache", "verify", cached)
    assert found.code == 2
    assert str(entry) in found.out
    assert json.loads(reelora("cache", "verify", cached, "--json").out)["damaged"][0]["path"] == str(entry)
    assert "1 encoded now, 2 found" in reelora("precompute", "--data", cached).err
    assert reelora("cache", "verify", cached).code == 0

    leftover = cached / ".reelora" / "latents" / ".half.0.safetensors"
    leftover.write_bytes(b"half")
    assert "1 files would go" in reelora("cache", "prune", cached, "--dry-run").out
    assert leftover.exists()
    assert json.loads(reelora("cache", "prune", cached, "--json").out)["files"][0]["path"] == str(leftover)
    assert not leftover.exists()
    assert len(CachedClips(row["manifest"])) == 3
    reelora("cache", "prune", cached, "--days", "0")
    assert not list((cached / ".reelora").rglob("*.safetensors"))


def test_a_cache_that_is_being_filled_is_not_pruned(reelora, clips, tmp_path):
    (tmp_path / "cache" / "sets").mkdir(parents=True)
    with in_use(tmp_path / "cache"):
        result = reelora("cache", "prune", tmp_path / "cache")
    assert result.code == 2
    assert "is being filled by another process" in result.err


@pytest.mark.parametrize("verb", ["ls", "verify", "prune"])
def test_a_folder_without_a_cache_says_what_makes_one(reelora, tmp_path, verb):
    result = reelora("cache", verb, tmp_path)
    assert result.code == 2
    assert "`reelora precompute` makes it" in result.err
