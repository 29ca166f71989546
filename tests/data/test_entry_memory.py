"""Entries that are held in memory after their first reading, as far as they fit."""

import shutil

import pytest
import torch
from encoders import NUM_TOKENS, Encoders, precompute
from films import write_film

from reelora.data import CachedClips, CacheSettings, ClipSettings, StoredImages, list_clips
from reelora.errors import DataError

SETTINGS = CacheSettings(
    clip=ClipSettings(num_frames=5, height=16, width=16, fps=8),
    vae_fingerprint="vae",
    text_fingerprint="t5",
    num_text_tokens=NUM_TOKENS,
)
TENSORS = ("latent_mean", "latent_std", "prompt_states")


@pytest.fixture
def clips(tmp_path) -> CachedClips:
    """Four films, each with a caption of its own."""
    folder = tmp_path / "films"
    folder.mkdir()
    for index in range(4):
        write_film(folder / f"{index}.mp4", 5, noise=index)
        (folder / f"{index}.txt").write_text(f"film {index}")
    return CachedClips(precompute(list_clips(folder), tmp_path / "cache", SETTINGS, **Encoders().factories()).manifest)


def take_away(clips):
    """No entry can be read from the disk any more."""
    for kind in ("latents", "prompts"):
        shutil.rmtree(clips.folder / kind)


def bytes_of(clip):
    return sum(clip[name].nbytes for name in TENSORS)


def copies_of(clips):
    return [{name: clip[name].clone() for name in TENSORS} for clip in clips]


def test_what_is_held_is_read_from_the_disk_once(clips):
    clips.memory.hold(2**30)
    first, empty = copies_of(clips), clips.empty_prompt_states.clone()
    take_away(clips)
    for clip, before in zip(clips, first, strict=True):
        assert all(torch.equal(clip[name], before[name]) for name in TENSORS)
    assert torch.equal(clips.empty_prompt_states, empty)
    assert clips.memory.held_bytes == sum(map(bytes_of, clips)) + empty.nbytes


def test_without_a_word_nothing_is_held(clips):
    list(clips)
    assert clips.memory.held_bytes == 0
    take_away(clips)
    with pytest.raises(DataError, match="missing"):
        clips[0]


def test_no_more_is_held_than_allowed_and_the_rest_is_still_right(clips):
    expected = copies_of(clips)
    limit = 2 * bytes_of(clips[0]) + 1
    clips.memory.hold(limit)
    for _ in range(2):
        for clip, before in zip(clips, expected, strict=True):
            assert all(torch.equal(clip[name], before[name]) for name in TENSORS)
        assert clips.memory.held_bytes == limit - 1
    take_away(clips)
    assert torch.equal(clips[1]["latent_mean"], expected[1]["latent_mean"]), "the first ones stay"
    with pytest.raises(DataError, match="missing"):
        clips[3]


def test_parts_of_a_data_set_share_what_is_held_and_all_of_it_can_be_let_go_of(clips):
    clips.memory.hold(2**30)
    seen, held_out = clips.split(2, seed=0)
    assert (len(list(seen)), len(list(held_out))) == (2, 2)
    take_away(clips)
    assert len(list(clips)) == 4
    clips.memory.hold(0)
    assert clips.memory.held_bytes == 0
    with pytest.raises(DataError, match="missing"):
        clips[0]


def test_a_damaged_entry_is_found_when_it_is_first_read_though_it_would_be_held(clips):
    clips.memory.hold(2**30)
    path = next((clips.folder / "latents").iterdir())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path.name}: is damaged"):
        list(clips)


def test_the_draws_of_pictures_are_held_with_the_clips(clips):
    images = StoredImages(clips, count=2, seed=0)
    (clips.folder / "images").mkdir()
    for name in clips.sources:
        images._write(name, torch.full((2, 3, 4, 4), float(name[0])))
    clips.memory.hold(2**30)
    before = [images(name).clone() for name in clips.sources]
    shutil.rmtree(clips.folder / "images")
    assert all(torch.equal(images(name), draws) for name, draws in zip(clips.sources, before, strict=True))
