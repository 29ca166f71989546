"""Blocks take turns in two buffers: whatever is asked for is there, nothing in use is overwritten, nothing is copied back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from late_copies import LateCopies
from torch._subclasses.fake_tensor import FakeTensorMode

from reelora.lora.ring import Ring

CPU = torch.device("cpu")


def blocks(count):
    """Of different sizes; each is told by its bytes."""
    return [torch.full((64 + index,), index, dtype=torch.uint8) for index in range(count)]


def ring_of(count):
    copier, held = LateCopies(), blocks(count)
    return Ring(held, CPU, copier=copier), copier, held


def there_and_back(count):
    return [*range(count), *reversed(range(count))]


@given(st.integers(1, 6).flatmap(lambda count: st.tuples(st.just(count), st.lists(st.integers(0, count - 1), max_size=40))))
def test_in_whatever_order_blocks_are_asked_for_each_is_whole_and_stays_so_until_the_next(asked):
    count, order = asked
    ring, _, held = ring_of(count)
    for index in order:
        buffer = ring.fetch(index)
        assert torch.equal(buffer[: held[index].numel()], held[index])
        assert ring.fetch(index) is buffer
    assert all(torch.equal(one, other) for one, other in zip(held, blocks(count), strict=True))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_step_copies_every_block_but_those_at_its_turns_once_in_each_direction(count):
    ring, copier, held = ring_of(count)
    for index in there_and_back(count):
        ring.fetch(index)
    before = len(copier.begun)
    for index in there_and_back(count):
        ring.fetch(index)
    order = [*range(2, count), *reversed(range(count - 2))]
    assert copier.begun[before:] == [held[index].data_ptr() for index in order]
    assert ring.num_copies == len(copier.begun)
    assert ring.nbytes == min(2, count) * max(block.nbytes for block in held)


@pytest.mark.parametrize("order", [there_and_back(6), list(range(6)), [0, 2, 4, 1, 3, 5]], ids=["training", "forward", "other"])
def test_once_the_order_is_known_every_copy_is_under_way_before_it_is_asked_for(order):
    ring, copier, held = ring_of(6)
    for index in [*order, *order]:
        ring.fetch(index)
    for index in order:
        begun = len(copier.begun)
        there = ring.fetch(index)
        began_now = copier.begun[begun:]
        assert held[index].data_ptr() not in began_now
        assert len(began_now) <= 1
        assert torch.equal(there[: held[index].numel()], held[index])


def test_a_rehearsal_copies_nothing():
    ring, copier, _ = ring_of(3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for index in there_and_back(3):
            assert ring.fetch(index).shape == (66,)
    assert copier.begun == []
