"""The order of clips as a pure function of seed and step."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelora.data import batch_indices
from reelora.errors import ConfigError

counts = st.integers(1, 40)


@settings(deadline=None)
@given(num_clips=counts, batch_size=st.integers(1, 9), seed=st.integers())
def test_every_epoch_takes_every_clip_once_and_drops_none(num_clips, batch_size, seed):
    steps = -(-3 * num_clips // batch_size)
    row = [i for step in range(steps) for i in batch_indices(step, batch_size=batch_size, num_clips=num_clips, seed=seed)]
    for epoch in range(3):
        assert Counter(row[epoch * num_clips : (epoch + 1) * num_clips]) == Counter(range(num_clips))


@settings(deadline=None)
@given(num_clips=counts, seed=st.integers(), place=st.integers(0, 200))
def test_the_order_does_not_depend_on_the_batch_size(num_clips, seed, place):
    (single,) = batch_indices(place, batch_size=1, num_clips=num_clips, seed=seed)
    assert batch_indices(place // 4, batch_size=4, num_clips=num_clips, seed=seed)[place % 4] == single


def test_epochs_and_seeds_differ():
    orders = {tuple(batch_indices(step, batch_size=20, num_clips=20, seed=seed)) for step in range(5) for seed in range(5)}
    assert len(orders) == 25


def test_each_place_is_as_likely_for_each_clip():
    # 2000 epochs of 5 clips: 400 expected, standard deviation 18; 5 of those allowed.
    firsts = Counter(batch_indices(step, batch_size=5, num_clips=5, seed=0)[0] for step in range(2000))
    assert all(abs(count - 400) < 90 for count in firsts.values())


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"num_clips": 0}, {"step": -1}])
def test_counts_that_are_not_positive_are_refused_by_name(wrong):
    arguments = {"step": 0, "batch_size": 1, "num_clips": 1, "seed": 0, **wrong}
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        batch_indices(arguments.pop("step"), **arguments)
