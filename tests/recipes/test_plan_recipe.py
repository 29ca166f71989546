"""The recipe of ``plan``: models, devices and settings by the names that users give them."""

import pytest
import torch
from pocket_runs import Lines, changed, small_config, write_films

from reelora.errors import ConfigError
from reelora.plan import gibibytes, said
from reelora.recipes import TrainConfig, plan_job, plan_run, train


def test_a_published_model_needs_no_file_and_no_connection(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    choice = plan_job("zai-org/CogVideoX-5b", settings={}, device="rtx-4090")
    assert choice.fits
    assert "catalog" in choice.notes[0]


def test_this_machine_is_planned_for_by_itself():
    choice = plan_job("pocket", settings={"num_frames": 9})
    assert not choice.device.is_pretended
    assert choice.chosen.spelled == "resident"
    assert choice.device.measured is not None


def test_this_machine_can_be_pretended_to_be_smaller():
    choice = plan_job("pocket", settings={}, device="cpu", memory="2GiB")
    assert choice.device.is_pretended
    assert choice.device.total_bytes == 2 * 2**30


@pytest.mark.parametrize(
    ("precision", "card", "dtype"), [("auto", "t4", "float16"), ("auto", "a100", "bfloat16"), ("fp32", "a100", "float32")]
)
def test_precision_follows_from_the_device_unless_it_is_given(precision, card, dtype):
    told = plan_job("CogVideoX-2B", settings={}, device=card, precision=precision)
    half = plan_job("CogVideoX-2B", settings={}, device=card, precision="fp16")
    ratio = told.chosen_row.bytes_by_phase["encode"] / half.chosen_row.bytes_by_phase["encode"]
    if told.chosen.spelled == half.chosen.spelled:
        assert ratio == pytest.approx(getattr(torch, dtype).itemsize / 2, rel=0.01)


def test_a_run_is_planned_by_its_settings():
    config = TrainConfig.with_overrides(
        ["model=zai-org/CogVideoX-5b", "lora.rank=64", "data.num_frames=17", "loop.batch_size=2"]
    )
    choice = plan_run(config, device="24GiB")
    assert choice.what == "CogVideoX-5B, training: rank 64, 2 x 17 frames of 480x720 per step"
    assert choice.fits


def test_the_largest_bucket_of_a_run_counts():
    config = TrainConfig.with_overrides(["model=zai-org/CogVideoX-5b", 'data.buckets=["17x480x720", "49x480x720"]'])
    assert "49 frames of 480x720" in plan_run(config, device="24GiB").what


def test_a_run_says_what_was_planned(tmp_path):
    """The same choice by the same settings: once from configs alone, once from the clips and the loaded model."""
    clips = write_films(tmp_path / "clips", 17, 17, 17)
    settings = {"tensorboard": False, "data__held_out": 0, "loop__steps": 1, "loop__batch_size": 2}
    config = small_config(tmp_path / "run", clips, **settings)
    roomy = plan_run(config).chosen_row.bytes_by_phase
    tight = changed(config, loop__memory=0.8 * (roomy["base"] + roomy["adapter"] + roomy["step"]) / 2**30)
    row, lines = plan_run(tight).chosen_row, Lines()
    train(tight, listener=lines)
    assert 0 < row.plan.kept.get("everything", 0) + row.plan.kept.get("products", 0) < 6
    [blocks] = [line for line in lines.said if line.startswith("blocks ")]
    assert blocks.split(maxsplit=1)[1].startswith(said(name for name, count in row.plan.kept.items() for _ in range(count)))
    [memory] = [line for line in lines.said if line.startswith("memory ")]
    sizes = row.bytes_by_phase
    assert f"{gibibytes(sizes['base'])} base, {gibibytes(sizes['adapter'])} adapter, {gibibytes(sizes['step'])}" in memory


def test_a_device_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="no device to plan for"):
        plan_job("pocket", settings={}, device="toaster")
