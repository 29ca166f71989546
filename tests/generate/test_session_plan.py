"""A plan decides where the parts are, and changes no pixel that it does not say."""

import gc
import weakref
from typing import Any

import pytest
import torch
from tiny_models import build_pipeline

from reelora.errors import ConfigError
from reelora.generate import Session, studio
from reelora.generate.stock import sample
from reelora.plan import Plan

QUICK: dict[str, Any] = {"steps": 2}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model of frames larger than a tile of its VAE."""
    folder = tmp_path_factory.mktemp("large")
    build_pipeline(sample_height=8, sample_width=8).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("plan", ["resident", "model", "group", "resident,slices"])
def test_wherever_the_parts_are_the_video_is_the_same(folder, adapter, plan):
    told = {"adapters": {"it": (adapter, 0.7)}, "steps": 2}
    for acts_as in ("branches", "fused"):
        expected = Session(folder).generate("a star", adapters_as=acts_as, **told)
        clip = Session(folder, plan=plan).generate("a star", adapters_as=acts_as, **told)
        assert torch.equal(clip.frames, expected.frames)
        assert clip.metadata == expected.metadata


def test_tiles_are_as_the_plan_says_and_the_clip_says_so(large):
    whole, in_tiles, by_itself = (
        Session(large, plan=p).generate("a star", **QUICK) for p in ("resident", "resident,tiles", "auto")
    )
    assert in_tiles.metadata == {**whole.metadata, "vae_tiling": True}
    assert not torch.equal(whole.frames, in_tiles.frames)
    assert torch.equal(whole.frames, by_itself.frames)


def test_what_changes_numbers_is_told(folder):
    plain, stored = Session(folder, plan="resident"), Session(folder, plan="resident,fp8")
    one, other = plain.generate("a star", **QUICK), stored.generate("a star", **QUICK)
    assert other.metadata == {**one.metadata, "fp8": True}
    assert not torch.equal(one.frames, other.frames)


def test_text_encoders_that_are_not_to_stay_are_let_go_before_the_first_step(folder):
    session, ghosts, alive = Session(folder, plan="model"), [], []

    def on_step(step, total):
        gc.collect()
        alive.append([ghost() is not None for ghost in ghosts])

    load = session.parts.load

    def spy(*roles):
        load(*roles)
        ghosts.append(weakref.ref(session.parts.text_encoder))

    session.parts.load = spy
    session.generate(["a star", "a red star"], on_step=on_step, **QUICK)
    assert alive == [[False]] * 4
    session.generate("a star", **QUICK)
    assert len(ghosts) == 1  # known prompts need no encoder
    session.generate("a star moves", **QUICK)
    assert len(ghosts) == 2


def test_with_everything_resident_the_text_encoder_stays(folder):
    session = Session(folder, plan="resident")
    session.generate("a star", **QUICK)
    assert "text_encoder" in session.parts.roles


def test_when_memory_does_not_suffice_the_plan_that_fits_is_named(large, monkeypatch):
    def fail(*args, **options):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(sample, "to_frames", fail)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        Session(large, plan="resident").generate("a star", **QUICK)
    [note] = caught.value.__notes__
    assert "with the plan 'resident' takes about" in note
    assert "--plan resident,tiles" in note or "--plan model" in note


def test_memory_that_goes_to_the_disk_is_said(folder, monkeypatch):
    held = iter([0, 0, 0, 200 * 2**20])
    monkeypatch.setattr(studio, "spilled_bytes", lambda: next(held))
    session = Session(folder)
    assert session.generate("a star", **QUICK).notes == ()
    [note] = session.generate("a star", **QUICK).notes
    assert note.startswith("200 MiB went to the disk")


def test_a_plan_can_be_given_as_such_and_nonsense_is_refused_at_once(folder):
    assert Session(folder, plan=Plan(placement="model")).generate("a star", **QUICK).frames.shape[0] == 9
    with pytest.raises(ConfigError, match=r"'modle' is none of its words, did you mean 'model'"):
        Session(folder, plan="modle")
