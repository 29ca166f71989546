"""``reelora cache``: ls, verify, prune."""

import json

import pytest
from films import write_film
from rights import folder_for_strangers, only_to_read

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
    assert "verify" in found.err
    assert "7/7" in found.err
    assert str(entry) in found.out
    assert json.loads(reelora("cache", "verify", cached, "--json").out)["damaged"][0]["path"] == str(entry)
    assert "1 encoded now, 2 found" in reelora("precompute", "--data", cached).err
    assert reelora("cache", "verify", cached).code == 0

    made = cached / ".reelora" / ".made" / "0123456789abcdef"
    made.mkdir(parents=True)
    (made / "000000.mp4").write_bytes(bytes(1_200_000))
    listed = json.loads(reelora("cache", "ls", cached, "--json").out)
    assert [(row["clips"], row["bytes"]) for row in listed["made"]] == [(1, 1_200_000)]
    assert (listed["probe_files"], listed["unused_files"]) == (3, 0)
    lines = reelora("cache", "ls", cached).out
    assert "0123456789ab  1 clips of a class, made by the base, 1.2 MB, used 20" in lines
    assert "facts of 3 videos, 0.0 MB" in lines

    leftover = cached / ".reelora" / "latents" / ".half.0.safetensors"
    leftover.write_bytes(b"half")
    assert "1 files or folders would go" in reelora("cache", "prune", cached, "--dry-run").out
    assert leftover.exists()
    assert json.loads(reelora("cache", "prune", cached, "--json").out)["files"][0]["path"] == str(leftover)
    assert not leftover.exists()
    assert len(CachedClips(row["manifest"])) == 3
    reelora("cache", "prune", cached, "--days", "0")
    assert not list((cached / ".reelora").rglob("*.safetensors"))
    assert not made.exists()


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


def test_a_cache_that_may_only_be_read_is_used_and_looked_at_but_not_pruned(reelora):
    with folder_for_strangers() as folder:
        write_film(folder / "0.mp4", 17, noise=0)
        (folder / "0.txt").write_text("a film")
        assert reelora("precompute", "--data", folder).code == 0
        with only_to_read(folder):
            again = reelora("precompute", "--data", folder, "--json")
            looks = [reelora("cache", *verb, folder) for verb in (["ls"], ["verify"], ["prune", "--dry-run", "--days", "0"])]
            refused = reelora("cache", "prune", folder)
        assert again.code == 0, again.err
        assert json.loads(again.out)["encoded_clips"] == 0
        assert [look.code for look in looks] == [0, 0, 0]
        assert (refused.code, refused.err) == (2, f"reelora: {folder / '.reelora' / 'lock'}: Permission denied\n")
