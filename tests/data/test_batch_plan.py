"""Batches of one bucket each, as a pure function of seed and place."""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelora.data import BatchPlan, batch_indices
from reelora.errors import ConfigError


@dataclass(frozen=True)
class Clips:
    """What a plan asks of a data set."""

    buckets: list[str]
    repeats: list[int]
    num_captions: list[int]

    @property
    def sources(self) -> list[str]:
        return [f"{index}.mp4" for index in range(len(self.buckets))]


rows = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=15)


def clips_of(rows) -> Clips:
    buckets, repeats, captions = (list(column) for column in zip(*rows, strict=True))
    return Clips(buckets, repeats, captions)


# CogVideo's sampler of buckets drops what is left over (reference D21).
@settings(deadline=None)
@given(rows=rows, batch_size=st.integers(1, 7), seed=st.integers())
def test_over_whole_rounds_each_clip_is_seen_as_often_as_it_repeats_and_batches_are_of_one_bucket(rows, batch_size, seed):
    clips = clips_of(rows)
    plan = BatchPlan(clips, batch_size=batch_size, seed=seed)
    seen = Counter()
    # After batch_size epochs every bucket's row is cut at the end of a batch.
    for batch in range(plan.begun(batch_size)):
        visits = plan.at(batch)
        assert len(visits) == batch_size
        assert {clips.buckets[visit.index] for visit in visits} == {plan.bucket_at(batch)}
        seen.update(visit.index for visit in visits)
    assert seen == Counter({index: batch_size * count for index, count in enumerate(clips.repeats)})


@settings(deadline=None)
@given(rows=rows, batch_size=st.integers(1, 7))
def test_every_batch_belongs_to_the_epoch_in_which_it_begins(rows, batch_size):
    plan = BatchPlan(clips_of(rows), batch_size=batch_size, seed=0)
    for batch in range(40):
        epoch = plan.epoch_of(batch)
        assert plan.begun(epoch) <= batch < plan.begun(epoch + 1)


@settings(deadline=None)
@given(num_clips=st.integers(1, 20), batch_size=st.integers(1, 9), seed=st.integers())
def test_with_one_bucket_the_batches_are_those_of_batch_indices(num_clips, batch_size, seed):
    plan = BatchPlan(Clips(["a"] * num_clips, [1] * num_clips, [1] * num_clips), batch_size=batch_size, seed=seed)
    for batch in range(12):
        wanted = batch_indices(batch, batch_size=batch_size, num_clips=num_clips, seed=seed)
        assert [visit.index for visit in plan.at(batch)] == wanted


@settings(deadline=None)
@given(num_captions=st.integers(1, 5), repeats=st.integers(1, 3), seed=st.integers())
def test_each_caption_is_seen_equally_often(num_captions, repeats, seed):
    plan = BatchPlan(Clips(["a", "b"], [repeats, 1], [num_captions, 1]), batch_size=1, seed=seed)
    visits = [plan.at(batch)[0] for batch in range(plan.begun(num_captions))]
    counts = Counter(visit.caption for visit in visits if visit.index == 0)
    assert counts == Counter(dict.fromkeys(range(num_captions), repeats))


def test_buckets_are_mixed_within_an_epoch_and_otherwise_in_the_next():
    plan = BatchPlan(Clips(["a"] * 20 + ["b"] * 20, [1] * 40, [1] * 40), batch_size=4, seed=0)
    orders = [tuple(plan.bucket_at(batch) for batch in range(plan.begun(e), plan.begun(e + 1))) for e in range(5)]
    assert len(set(orders)) == 5
    assert all(Counter(order) == {"a": 5, "b": 5} for order in orders)


def test_a_bucket_smaller_than_a_batch_is_named_and_loses_no_clip():
    plan = BatchPlan(Clips(["a", "b", "b", "b", "b"], [1] * 5, [1] * 5), batch_size=4, seed=0)
    assert plan.small_buckets == ["a"]
    assert any(visit.index == 0 for batch in range(plan.begun(4)) for visit in plan.at(batch))


def test_an_empty_data_set_is_refused():
    with pytest.raises(ConfigError, match="out of 0 clips"):
        BatchPlan(Clips([], [], []), batch_size=1, seed=0)
