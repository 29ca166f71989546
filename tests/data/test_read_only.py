"""A cache that may only be read: what is complete in it is used, and what is missing is said at once."""

import errno
import shutil
from pathlib import Path

import pytest
import torch
from encoders import NUM_TOKENS, Encoders, precompute
from rights import folder_for_strangers, only_to_read

from reelora.data import (
    CachedClips,
    CacheSettings,
    ClipSettings,
    StoredImages,
    alone_in,
    cache_sets,
    in_use,
    list_clips,
    plan_clips,
    plan_pruning,
)
from reelora.data.read_only import if_writable

SETTINGS = CacheSettings(
    clip=ClipSettings(num_frames=9, height=16, width=16, fps=8),
    vae_fingerprint="vae",
    text_fingerprint="t5",
    num_text_tokens=NUM_TOKENS,
)


@pytest.fixture
def folder(drawn_clips):
    """A data set with its cache beside it."""
    with folder_for_strangers() as place:
        shutil.copytree(drawn_clips, place / "clips")
        fill(place)
        yield place


def fill(folder: Path, encoders: Encoders | None = None) -> CachedClips:
    encoders = encoders or Encoders()
    return CachedClips(precompute(list_clips(folder / "clips"), folder / "cache", SETTINGS, **encoders.factories()).manifest)


@pytest.mark.parametrize("missing", ["nothing", "lock", "probes"])
def test_a_complete_cache_is_used_without_writing(folder, missing):
    place = folder / "cache" / missing
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    encoders = Encoders()
    with only_to_read(folder):
        clips = fill(folder, encoders)
        assert clips.verify() == []
    assert (encoders.made, len(clips)) == ([], 3)


def test_pictures_that_are_all_there_are_used_without_writing(folder):
    clips = fill(folder)
    planned = plan_clips(list_clips(folder / "clips"), SETTINGS, folder / "cache").clips
    images = StoredImages(clips, count=2, seed=0)

    def complete(make):
        return images.complete(planned, make, on_progress=lambda done, total, name: None)

    assert complete(lambda: lambda frames, clip: torch.zeros(2, 1, 2, 2)) == 3
    with only_to_read(folder):
        assert complete(pytest.fail) == 0


@pytest.mark.parametrize("missing", ["latents", "prompts"])
def test_what_is_missing_is_said_before_an_encoder_is_made(folder, missing):
    sorted((folder / "cache" / missing).iterdir())[0].unlink()
    encoders = Encoders()
    with only_to_read(folder), pytest.raises(PermissionError, match="cache"):
        fill(folder, encoders)
    assert encoders.made == []


def test_what_could_go_can_be_asked_but_not_deleted(folder):
    cache = folder / "cache"
    with only_to_read(folder):
        with alone_in(cache, to_read=True):
            assert plan_pruning(cache, days=0).files
        with pytest.raises(PermissionError), alone_in(cache):
            pass
        with pytest.raises(PermissionError), in_use(cache):
            pass
    assert len(cache_sets(cache)[0]) == 1


def test_only_the_rights_to_write_are_done_without():
    for code in (errno.EROFS, errno.EACCES, errno.EPERM):
        with if_writable():
            raise OSError(code, "no")
    with pytest.raises(OSError, match="full"), if_writable():
        raise OSError(errno.ENOSPC, "full")
