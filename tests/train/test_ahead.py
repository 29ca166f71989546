"""Batches are there when they are asked for, and clips are read from the disk once."""

import shutil
import threading

import pytest
import torch
from small_run import CONFIG, make_diffusion, write_cache

from reelora.data import CachedClips
from reelora.train import Team, read_metrics
from reelora.train.ahead import ReadAhead, passes_ahead, room_for_clips
from reelora.train.batches import Batches


class Disk:
    """Reads a number only while it is allowed to, and says which it has read."""

    def __init__(self):
        self.numbers, self._permits, self._done = [], threading.Semaphore(0), threading.Condition()

    def __call__(self, number):
        assert self._permits.acquire(timeout=20), f"somebody waits for {number}"
        with self._done:
            self.numbers.append(number)
            self._done.notify()
        return number

    def spin(self, count):
        """Let it read so many more, and wait until it has."""
        wanted = len(self.numbers) + count
        for _ in range(count):
            self._permits.release()
        with self._done:
            assert self._done.wait_for(lambda: len(self.numbers) >= wanted, timeout=20), self.numbers


@pytest.mark.parametrize("stride", [1, 3])
def test_no_step_waits_after_the_first_where_a_step_is_long_enough_to_read_one(stride):
    """Four passes in each step; the disk does nothing during some of them, and a step's worth of reading in the others."""
    disk = Disk()
    ahead = ReadAhead(disk, stride=stride, depth=4)
    disk._permits.release()
    assert ahead.read(0) == 0
    disk.spin(4)
    for step in range(5):
        for number in range(4 * step + 1, 4 * step + 5):
            assert ahead.read(number * stride) == number * stride
        disk.spin(4)
    assert disk.numbers == [number * stride for number in range(25)]
    ahead.close()


def test_what_is_read_ahead_of_a_place_that_nobody_comes_to_is_forgotten():
    ahead = ReadAhead(lambda number: number, stride=1, depth=2)
    assert [ahead.read(number) for number in (0, 1, 100, 101)] == [0, 1, 100, 101]
    assert ahead._pending.keys() == {102, 103}
    ahead.close()


@pytest.mark.parametrize(("accumulation", "size", "depth"), [(1, 1, 2), (8, 1, 8), (8, 2, 4), (64, 1, 16)])
def test_as_many_are_read_ahead_as_a_process_makes_in_a_step(accumulation, size, depth):
    assert passes_ahead(CONFIG.model_copy(update={"gradient_accumulation": accumulation}), Team(size=size)) == depth


def test_clips_take_a_bounded_share_of_the_hosts_memory_which_processes_divide():
    assert room_for_clips(1000, Team()) == 100
    assert room_for_clips(1000, Team(size=4)) == 25
    assert room_for_clips(1000, Team(size=2, device=torch.device("cuda"))) == 250


@pytest.fixture
def own_cache(tmp_path):
    return write_cache(tmp_path / "films")


def batches_of(clips):
    return Batches(clips, CONFIG, num_timesteps=make_diffusion().num_timesteps, frame_group=1)


def test_the_second_epoch_reads_nothing_from_the_disk_and_gives_equal_batches(own_cache):
    expected = [batches_of(CachedClips(own_cache.folder)).read(number) for number in range(6)]
    batches = batches_of(own_cache)
    batches.hold(2**30)
    for number in range(3):
        batches.read(number)  # five clips, two in each
    for kind in ("latents", "prompts"):
        shutil.rmtree(own_cache.folder / kind)
    for number in range(3, 6):
        batch = batches.read(number)
        for name in ("clean", "noise", "timesteps", "states", "weights"):
            assert torch.equal(getattr(batch, name), getattr(expected[number], name))
        assert batch.sources == expected[number].sources


def test_a_run_holds_its_clips_and_lets_go_of_them_at_its_end(run, clips, tmp_path):
    held = []
    run(on_step=lambda report: held.append(clips.memory.held_bytes))
    assert held[-1] > 0
    assert clips.memory.held_bytes == 0
    waits = [row["data_wait"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "data_wait" in row]
    assert len(waits) == len(held)
