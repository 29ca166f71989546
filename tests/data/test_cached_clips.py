"""A complete cache as a data set."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from encoders import NUM_TOKENS, Encoders, precompute
from films import write_film
from hypothesis import given, settings
from hypothesis import strategies as st

from reelora.data import CachedClips, CacheSettings, ClipSettings, ClipSource, list_clips
from reelora.errors import ConfigError, DataError, FileFormatError

SETTINGS = CacheSettings(
    clip=ClipSettings(num_frames=5, height=16, width=16, fps=8),
    vae_fingerprint="vae",
    text_fingerprint="t5",
    num_text_tokens=NUM_TOKENS,
    dtype=torch.bfloat16,
)


def cached(clips, cache: Path) -> CachedClips:
    return CachedClips(precompute(clips, cache, SETTINGS, **Encoders().factories()).manifest)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[ClipSource]:
    """Ten films; the last is a copy of the first."""
    folder = tmp_path_factory.mktemp("clips")
    for index in range(9):
        write_film(folder / f"{index}.mp4", 5, noise=index)
    shutil.copy(folder / "0.mp4", folder / "9.mp4")
    for index in range(10):
        (folder / f"{index}.txt").write_text(f"film {index % 3}")
    return list(list_clips(folder))


@pytest.fixture(scope="module")
def ten(clips, tmp_path_factory) -> CachedClips:
    return cached(clips, tmp_path_factory.mktemp("cache"))


def test_a_cache_is_opened_by_its_folder_or_its_manifest(ten):
    assert CachedClips(next((ten.folder / "sets").iterdir())).data_hash == ten.data_hash
    assert len(ten) == 10
    assert ten[-1]["source"] == "9.mp4"
    assert [clip["caption"] for clip in ten] == ten.captions
    with pytest.raises(IndexError):
        ten[10]


def test_tensors_have_the_axes_and_the_dtype_that_were_asked_for(ten):
    assert {name: tuple(ten[0][name].shape) for name in ("latent_mean", "latent_std", "prompt_states")} == {
        "latent_mean": (2, 3, 2, 2),
        "latent_std": (2, 3, 2, 2),
        "prompt_states": (6, 4),
    }
    assert ten[0]["latent_std"].dtype == ten.empty_prompt_states.dtype == torch.bfloat16
    assert ten.settings["dtype"] == "torch.bfloat16"
    assert ten.settings["num_frames"] == 5


@given(count=st.integers(0, 8), seed=st.integers())
@settings(deadline=None)
def test_a_split_takes_every_clip_once_and_keeps_copies_together(ten, count, seed):
    train, held_out = ten.split(count, seed=seed)
    assert sorted(train.sources + held_out.sources) == ten.sources
    assert len(held_out) in (count, count + 1)  # the copy comes along
    assert ("0.mp4" in train.sources) == ("9.mp4" in train.sources)
    assert ten.split(count, seed=seed)[1].data_hash == held_out.data_hash


@given(share=st.floats(0, 0.94), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_a_share_holds_out_that_part_of_the_videos_and_at_least_one(ten, share, seed):
    _, held_out = ten.split(share, seed=seed)
    wanted = max(1, round(share * 9)) if share else 0
    assert len(held_out) in (wanted, wanted + 1)


def test_a_split_depends_on_content_and_not_on_order_names_or_captions(ten, clips, tmp_path):
    renamed = [ClipSource(name=f"x{i}.mp4", path=clip.path, captions=("another",)) for i, clip in enumerate(reversed(clips))]
    other = cached(renamed, tmp_path / "cache")
    held_out = {ten.sources.index(name) for name in ten.split(3, seed=1)[1].sources}
    assert {9 - int(name[1:-4]) for name in other.split(3, seed=1)[1].sources} == held_out


def test_one_clip_more_changes_at_most_one_of_those_held_out(ten, clips, tmp_path):
    fewer = cached(clips[:-2], tmp_path / "cache")
    for seed in range(10):
        before, after = (set(data.split(3, seed=seed)[1].sources) - {"9.mp4"} for data in (fewer, ten))
        assert len(before - after) <= 1


def test_seeds_hold_out_different_clips(ten):
    assert len({tuple(ten.split(2, seed=seed)[1].sources) for seed in range(20)}) > 5


@pytest.mark.parametrize("held_out", [-1, 9, 10, 1.0, -0.1, float("nan")])
def test_a_split_that_leaves_nothing_to_train_on_is_refused(ten, held_out):
    with pytest.raises(ConfigError, match="cannot be held out"):
        ten.split(held_out, seed=0)


def test_the_data_hash_is_that_of_the_content_wherever_it_lies(ten, clips, tmp_path):
    shutil.copytree(ten.folder, tmp_path / "copy")
    assert CachedClips(tmp_path / "copy").data_hash == ten.data_hash
    assert cached(clips[:-1], tmp_path / "fewer").data_hash != ten.data_hash
    assert cached(clips[::-1], tmp_path / "fewer").data_hash != ten.data_hash
    train, held_out = ten.split(2, seed=0)
    assert len({train.data_hash, held_out.data_hash, ten.data_hash}) == 3


def test_a_split_of_a_split_goes_on_from_what_is_left(ten):
    train, _ = ten.split(2, seed=0)
    rest, more = train.split(2, seed=1)
    assert sorted(rest.sources + more.sources) == sorted(train.sources)


def test_missing_and_truncated_entries_are_counted_when_the_cache_is_opened(ten, tmp_path):
    cache = shutil.copytree(ten.folder, tmp_path / "cache")
    latents, prompts = (sorted((cache / kind).iterdir()) for kind in ("latents", "prompts"))
    latents[0].unlink()
    latents[1].unlink()
    prompts[0].write_bytes(prompts[0].read_bytes()[:-1])
    with pytest.raises(DataError, match=r"of 13 entries 2 are missing, first .*; 1 are truncated") as error:
        CachedClips(cache)
    assert latents[0].name in str(error.value)
    assert prompts[0].name in str(error.value)


def test_an_entry_that_vanishes_later_says_what_to_do(ten, tmp_path):
    clips = CachedClips(shutil.copytree(ten.folder, tmp_path / "cache"))
    for path in (clips.folder / "latents").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"this entry of the cache is missing\. Run `reelora precompute`"):
        clips[0]


def test_verify_finds_a_single_flipped_bit(ten, tmp_path):
    clips = CachedClips(shutil.copytree(ten.folder, tmp_path / "cache"))
    assert clips.verify() == []
    path = sorted((clips.folder / "latents").iterdir())[3]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert CachedClips(clips.folder).verify() == [path]


def test_values_that_changed_on_the_disk_are_refused_by_name_when_they_are_first_read(ten, tmp_path):
    folder = shutil.copytree(ten.folder, tmp_path / "cache")
    for path in (folder / "latents").iterdir():
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    with pytest.raises(DataError, match=r"latents.*is damaged.*Run `reelora precompute`"):
        CachedClips(folder)[0]


def test_a_manifest_cannot_name_files_outside_the_cache(ten, tmp_path):
    cache = shutil.copytree(ten.folder, tmp_path / "cache")
    (manifest,) = (cache / "sets").iterdir()
    text = manifest.read_text()
    key = json.loads(text)["clips"][0]["latents"]
    manifest.write_text(text.replace(key, "../../" + key[6:]))
    with pytest.raises(FileFormatError, match="is no manifest of a cache"):
        CachedClips(cache)
