"""A session keeps the adapters that it used lately, and no video depends on what it kept."""

import gc
import os
import weakref
from typing import Any

import pytest
import torch

from reelora.adapters import LoraSpec, write_adapter
from reelora.errors import MismatchError
from reelora.generate import Session
from reelora.generate.shelf import _KEPT
from reelora.lora import attach, collect, detach

QUICK: dict[str, Any] = {"steps": 2, "num_frames": 1, "height": 16, "width": 16}


def same(one, other):
    return torch.equal(one.frames, other.frames)


@pytest.fixture
def factors_of(parts):
    """Makes a video and says which tensors acted on its way."""
    session, place = Session.of(parts), parts.transformer.transformer_blocks[0].attn1

    def run(adapters):
        seen = []
        session.generate(
            "a star", adapters=adapters, on_step=lambda *step: seen.append((place.to_q.lora_a, place.to_q.lora_b)), **QUICK
        )
        return seen[0]

    return run


def test_what_was_used_before_is_not_stacked_again_whatever_its_strength_and_what_came_between(
    factors_of, adapter, make_adapter
):
    first = factors_of({"style": (adapter, 1.0)})
    factors_of({"other": (make_adapter(seed=5), 1.0)})
    again = factors_of({"it": (adapter, 0.5)})
    assert all(one is other for one, other in zip(first, again, strict=True))


def test_a_file_is_read_once_and_again_when_it_is_written_anew(factors_of, adapter, make_adapter, tmp_path):
    path = tmp_path / "style.safetensors"
    write_adapter(adapter, path)
    first, again = (factors_of({path: 1.0}) for _ in range(2))
    assert first[1] is again[1]
    path.unlink()
    write_adapter(make_adapter(seed=5), path)
    new = factors_of({path: 1.0})
    assert not torch.equal(new[1], first[1])
    assert torch.equal(new[1], factors_of({"new": (make_adapter(seed=5), 1.0)})[1])


def test_a_copy_of_a_file_is_the_same_adapter(factors_of, adapter, tmp_path):
    write_adapter(adapter, tmp_path / "style.safetensors")
    os.link(tmp_path / "style.safetensors", tmp_path / "copy.safetensors")
    first = factors_of({"style": (adapter, 1.0)})
    other = factors_of({tmp_path / "copy.safetensors": 1.0})
    assert torch.equal(first[1], other[1])


def test_a_video_is_the_same_to_the_last_bit_whatever_the_session_did_before(folder, parts, adapter, make_adapter):
    other = make_adapter(seed=5)
    job = {"one": (adapter, 0.7), "two": (other, -0.3)}
    expected = Session(folder).generate("a star", adapters=job, **QUICK)
    session = Session.of(parts)
    befores = [{}, {"two": (adapter, 0.5)}, {"one": (other, 1.0), "two": (adapter, 1.0)}, {"new": (make_adapter(seed=6), 1.0)}]
    for before in befores:
        session.generate("a red star", adapters=before, **QUICK)
        assert same(session.generate("a star", adapters=job, **QUICK), expected)
    with pytest.raises(KeyboardInterrupt):
        session.generate("a star", adapters={"two": (other, 2.0)}, on_step=interrupt, **QUICK)
    assert same(session.generate("a star", adapters=job, **QUICK), expected)
    assert same(session.generate("a star", adapters=dict(reversed(job.items())), **QUICK), expected)
    assert same(session.generate("a star", **QUICK), Session(folder).generate("a star", **QUICK))


def interrupt(step, total):
    raise KeyboardInterrupt


def test_one_adapter_under_two_names_acts_with_both_strengths(session, adapter):
    twice = session.generate("a star", adapters={"one": (adapter, 0.5), "two": (adapter, 0.25)}, **QUICK)
    once = session.generate("a star", adapters={"it": (adapter, 0.75)}, **QUICK)
    assert (twice.frames.int() - once.frames.int()).abs().max() <= 1  # sums in another order
    assert [told["strength"] for told in twice.metadata["adapters"]] == [0.5, 0.25]


def test_adapters_that_were_not_used_for_long_are_let_go(parts, make_adapter):
    session, ghosts = Session.of(parts), []
    for seed in range(_KEPT + 3):
        adapter = make_adapter(seed=seed)
        ghosts.append(weakref.ref(adapter))
        session.generate("a star", adapters={"it": (adapter, 1.0)}, **QUICK)
    del adapter
    gc.collect()
    assert [ghost() is None for ghost in ghosts] == [True] * 3 + [False] * _KEPT


def test_a_call_may_use_more_adapters_than_are_kept(session, make_adapter):
    many = {str(seed): (make_adapter(seed=seed), 0.1) for seed in range(_KEPT + 2)}
    clips = [session.generate("a star", adapters=many, **QUICK) for _ in range(2)]
    assert same(*clips)
    assert len(clips[0].metadata["adapters"]) == _KEPT + 2


def test_an_adapter_that_does_not_fit_leaves_those_that_were_kept_as_they_were(session, adapter, make_adapter):
    before = session.generate("a star", adapters={"it": (adapter, 1.0)}, **QUICK)
    wide = make_adapter(seed=1, width=48)
    with pytest.raises(MismatchError):
        session.generate("a star", adapters={"it": (adapter, 1.0), "wide": (wide, 1.0)}, **QUICK)
    assert same(session.generate("a star", adapters={"it": (adapter, 1.0)}, **QUICK), before)


def test_branches_that_are_attached_and_detached_between_two_videos_act_and_act_no_more(folder, parts, adapter):
    session, uses = Session.of(parts), {"it": (adapter, 1.0)}
    bare = session.generate("a star", adapters=uses, **QUICK)
    attach(parts.transformer, LoraSpec(rank=4, alpha=4), seed=1)
    for name, parameter in parts.transformer.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    in_training = session.generate("a star", adapters=uses, **QUICK)
    both = {"its own": (collect(parts.transformer), 1.0), **uses}
    expected = Session(folder).generate("a star", adapters=both, **QUICK)
    assert (in_training.frames.int() - expected.frames.int()).abs().max() <= 1  # sums in another order
    assert not same(in_training, bare)
    detach(parts.transformer)
    assert same(session.generate("a star", adapters=uses, **QUICK), bare)


def test_a_model_that_is_cast_between_two_videos_takes_the_adapters_along(parts, adapter):
    session, uses = Session.of(parts), {"it": (adapter, 1.0)}
    before = session.generate("a star", adapters=uses, **QUICK)
    weights = {name: tensor.clone() for name, tensor in parts.transformer.state_dict().items()}
    parts.transformer.to(torch.bfloat16)
    session.generate("a star", adapters=uses, **QUICK)
    parts.transformer.to(torch.float32).load_state_dict(weights)
    assert same(session.generate("a star", adapters=uses, **QUICK), before)
