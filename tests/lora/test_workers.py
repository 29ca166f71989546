"""Weights are fused beside each other, a thread for each, and nothing else of the process notices."""

import threading

import pytest
import torch
from test_using import adapter_for

from reelora.lora import Rack, workers


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    """torch has two threads, and no work is too small to be shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(workers, "_WORTH_IT_BYTES", 0)
    yield
    torch.set_num_threads(before)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def loaded(model):
    rack = Rack(model)
    rack.load("one", adapter_for(model))
    rack.load("two", adapter_for(model, seed=1))
    return rack


def test_all_items_are_done_by_threads_that_share_those_of_torch():
    meeting, seen = threading.Barrier(2, timeout=30), {}

    def work(number):
        if number < 2:
            meeting.wait()  # both are in the middle of it at once
        seen[number] = (threading.get_ident(), torch.get_num_threads())

    workers.for_each(work, range(5), size_bytes=1)
    assert seen.keys() == set(range(5))
    assert {threads for _, threads in seen.values()} == {1}
    assert threading.get_ident() not in {thread for thread, _ in seen.values()}
    assert len({thread for thread, _ in seen.values()}) == 2


def test_the_process_keeps_its_number_of_threads_also_in_threads_that_come_later():
    workers.for_each(lambda number: torch.ones(number), range(3), size_bytes=1)
    found = []
    late = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    late.start()
    late.join()
    assert (torch.get_num_threads(), found) == (2, [2])


def test_work_that_is_too_small_for_threads_stays_in_its_own(monkeypatch):
    monkeypatch.setattr(workers, "_WORTH_IT_BYTES", 100)
    seen = set()
    workers.for_each(lambda _: seen.add(threading.get_ident()), range(3), size_bytes=99)
    assert seen == {threading.get_ident()}


def test_an_error_ends_the_work_and_is_raised():
    done = []

    def work(number):
        if number == 0:
            raise MemoryError("no room")
        done.append(number)

    with pytest.raises(MemoryError, match="no room"):
        workers.for_each(work, range(10_000), size_bytes=1)
    assert len(done) < 9_999
    assert torch.get_num_threads() == 2


def test_fusing_beside_each_other_gives_the_bits_of_fusing_in_turn(model):
    rack = loaded(model)
    pristine = weights(model)
    rack.activate({"one": 0.7, "two": -0.4})
    rack.fuse()
    together = weights(model)
    rack.restore()
    rack.activate({})
    assert same(model, pristine)
    torch.set_num_threads(1)
    rack.activate({"one": 0.7, "two": -0.4})
    rack.fuse()
    assert same(model, together)


def test_what_begins_in_inference_mode_goes_on_outside_of_it(model):
    rack = loaded(model)
    pristine = weights(model)
    with torch.inference_mode():
        rack.activate({"one": 1.0})
    rack.activate({"one": 0.5})
    with torch.inference_mode():
        rack.fuse()
    rack.activate({"two": 0.5})
    fused = weights(model)
    with torch.inference_mode():
        rack.activate({"one": 1.0})
        rack.activate({"two": 0.5})
    assert same(model, fused)
    rack.activate({})
    assert same(model, pristine)


def test_a_failure_in_one_thread_leaves_what_was_there(model, monkeypatch):
    from reelora.lora import fused as room

    rack = loaded(model)
    rack.activate({"one": 1.0})
    rack.fuse()
    before, real, calls = weights(model), room.fuse_into, []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise MemoryError("no room")
        return real(*arguments, **options)

    monkeypatch.setattr(room, "fuse_into", failing)
    with pytest.raises(MemoryError):
        rack.activate({"two": 0.5})
    assert same(model, before)
    assert rack.state.is_fused
    rack.restore()
    rack.activate({"two": 0.5})
    rack.fuse()
    assert not same(model, before)
