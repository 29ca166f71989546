"""What a cache holds, whether it is whole, and what of it can go."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from encoders import NUM_TOKENS, Encoders, precompute

from reelora.data import (
    CachedClips,
    CacheSettings,
    ClipSettings,
    alone_in,
    cache_sets,
    in_use,
    list_clips,
    made_clips,
    plan_pruning,
    probe_files,
    unused_entries,
    verify_cache,
)
from reelora.errors import DataError

SETTINGS = CacheSettings(
    clip=ClipSettings(num_frames=9, height=16, width=16, fps=8),
    vae_fingerprint="vae",
    text_fingerprint="t5",
    num_text_tokens=NUM_TOKENS,
)
SMALLER = replace(SETTINGS, clip=replace(SETTINGS.clip, num_frames=5))


@pytest.fixture
def cache(data_folder, tmp_path) -> Path:
    """A cache of one data set in two sizes; the first was last used a month ago."""
    folder = tmp_path / "cache"
    for settings in (SETTINGS, SMALLER):
        precompute(list_clips(data_folder), folder, settings, **Encoders().factories())
    (old,) = [found.manifest for found in cache_sets(folder)[0] if found.settings["num_frames"] == 9]
    month_ago = time.time() - 30 * 86400
    os.utime(old, (month_ago, month_ago))
    return folder


def damage(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return path


def test_the_data_sets_of_a_cache_are_listed_the_last_used_at_the_end(cache):
    sets, damaged = cache_sets(cache)
    assert [found.settings["num_frames"] for found in sets] == [9, 5]
    assert [(found.num_clips, found.num_entries) for found in sets] == [(3, 7), (3, 7)]
    assert damaged == []
    assert sum(path.stat().st_size for path in (cache / "latents").iterdir()) < sum(found.size_bytes for found in sets)


def test_using_a_data_set_again_marks_it_as_used(cache, data_folder):
    precompute(list_clips(data_folder), cache, SETTINGS, **Encoders().factories())
    assert [found.settings["num_frames"] for found in cache_sets(cache)[0]] == [5, 9]


def test_verify_names_every_file_that_is_damaged_and_no_other(cache):
    assert verify_cache(cache) == []
    wrong = [damage(sorted((cache / name).iterdir())[0]) for name in ("sets", "latents", "prompts")]
    assert sorted(found.path for found in verify_cache(cache)) == sorted(wrong)


def test_pruning_leaves_all_that_a_data_set_uses(cache):
    plan_pruning(cache, days=60).run()
    assert [len(CachedClips(found.manifest)) for found in cache_sets(cache)[0]] == [3, 3]


def test_pruning_takes_old_data_sets_and_the_entries_that_only_they_used(cache):
    pruning = plan_pruning(cache, days=7)
    assert len(pruning.files) == 4  # the manifest and three latents; the captions are shared
    assert pruning.size_bytes == sum(file.path.stat().st_size for file in pruning.files)
    pruning.run()
    (left,) = cache_sets(cache)[0]
    assert CachedClips(left.manifest).verify() == []
    assert unused_entries(cache) == []


def test_pruning_takes_what_is_damaged_and_what_was_left_half_written(cache):
    wrong = damage(sorted((cache / "latents").iterdir())[0])
    half = cache / "prompts" / ".half.123.safetensors"
    half.write_bytes(b"half")
    assert {file.path for file in plan_pruning(cache, days=60).files} == {wrong, half}


def test_a_manifest_of_what_was_pruned_is_not_believed(cache):
    damage(sorted((cache / "latents").iterdir())[0])
    plan_pruning(cache, days=60).run()
    sets, _ = cache_sets(cache)
    with pytest.raises(DataError, match="1 are missing"):
        [CachedClips(found.manifest) for found in sets]


def test_nothing_is_deleted_while_a_cache_is_filled_and_many_may_fill_it(cache):
    with in_use(cache), in_use(cache), pytest.raises(DataError, match="is being filled by another process"), alone_in(cache):
        pass
    with alone_in(cache):
        pass


def make_clips(cache: Path, name: str, *, days: float) -> Path:
    """Two clips of a class with their list, used so many days ago."""
    folder = cache / ".made" / name
    folder.mkdir(parents=True)
    used_at = time.time() - days * 86400
    for file in ("000000.png", "000001.png", "facts.json", "metadata.jsonl"):
        (folder / file).write_bytes(b"12345")
        os.utime(folder / file, (used_at, used_at))
    return folder


def test_clips_of_a_class_are_listed_and_pruned_by_their_last_use(cache):
    young, old = make_clips(cache, "young", days=1), make_clips(cache, "old", days=40)
    assert [(made.folder, made.num_clips, made.size_bytes) for made in made_clips(cache)] == [(old, 2, 20), (young, 2, 20)]
    assert plan_pruning(cache, days=60).files == ()
    pruning = plan_pruning(cache, days=35)
    assert [file.path for file in pruning.files] == [old]
    assert pruning.size_bytes == 20
    os.utime(old / "metadata.jsonl")
    assert plan_pruning(cache, days=35).files == ()
    os.utime(old / "metadata.jsonl", (0, 0))
    pruning.run()
    assert (young.is_dir(), old.exists()) == (True, False)


def test_a_clip_of_a_class_that_was_left_half_written_goes_alone(cache):
    half = make_clips(cache, "young", days=1) / ".000002.123.png"
    half.write_bytes(b"half")
    assert [file.path for file in plan_pruning(cache, days=60).files] == [half]
    os.utime(half, (0, 0))
    pruning = plan_pruning(cache, days=0.5)
    assert half.parent in [file.path for file in pruning.files]
    assert half not in [file.path for file in pruning.files]
    pruning.run()
    assert not half.parent.exists()


def test_facts_of_videos_go_with_the_last_data_set_that_names_them(cache, data_folder):
    (data_folder / "2.mp4").unlink()
    (data_folder / "2.txt").unlink()
    smallest = replace(SETTINGS, clip=replace(SETTINGS.clip, num_frames=1))
    precompute(list_clips(data_folder), cache, smallest, **Encoders().factories())
    for path in (cache / "sets").iterdir():
        if '"num_frames": 1,' not in path.read_text():
            os.utime(path, (0, 0))
    assert len(probe_files(cache)) == 3
    plan_pruning(cache, days=7).run()
    assert len(cache_sets(cache)[0]) == 1
    assert len(probe_files(cache)) == 2
    assert unused_entries(cache) == []
