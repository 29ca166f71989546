"""What a training run says, keeps and refuses, on the pocket model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pocket_runs import Lines, changed, small_config, write_films

from reelora import recipes
from reelora.adapters import read_adapter
from reelora.errors import ConfigError, TrainingDivergedError
from reelora.recipes import Silent, TrainConfig
from reelora.recipes.demo.scenes import write_stars
from reelora.train import only_run_in, read_metrics


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_films(tmp_path_factory.mktemp("clips"), 17, 17, 17, 17, 17)


@pytest.fixture
def config(clips, tmp_path):
    settings = {"loop__steps": 2, "loop__batch_size": 4, "loop__evaluate_every": 0}
    return small_config(tmp_path / "run", clips, tensorboard=False, data__held_out=3, **settings)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_says_its_sizes_its_progress_and_its_verdict(config):
    lines = Lines()
    outcome = recipes.train(config, listener=lines)
    said = "\n".join(lines.said)
    assert "2 to train on, 3 held out" in said
    assert "has fewer clips than a batch of 4" in said
    assert outcome.verdict is not None
    assert f"step 2: {outcome.verdict}" in said
    size = outcome.adapter.stat().st_size / 1e6
    assert f"{outcome.summary.trainable_parameters * 4 / 1e6:.1f} MB" in said
    assert size == pytest.approx(outcome.summary.trainable_parameters * 4 / 1e6, rel=0.2)  # the header is small
    for part in ("loss", "s/step", "clips/s", "data wait", "peak"):
        assert part in lines.notes[-1]


@pytest.mark.parametrize("is_wanted", [True, False])
def test_tensorboard_may_be_there_or_not_whatever_the_settings_hold(config, is_wanted):
    """CogVideo's own trainer cannot do without a tracker, and TensorBoard fails on the paths and lists in its settings."""
    recipes.train(changed(config, tensorboard=is_wanted, trigger_words=["film"]), listener=Silent())
    assert (config.output / "tensorboard").exists() == is_wanted


def test_what_is_on_can_be_turned_off():
    """CogVideo's own trainer reads "False" as true: its caching, pinning and checkpointing cannot be turned off."""
    config = TrainConfig.with_overrides(["tensorboard=false", "loop.gradient_checkpointing=false"])
    assert (config.tensorboard, config.loop.gradient_checkpointing) == (False, False)


def test_an_adapter_to_go_on_with_that_is_not_there_is_refused(config):
    """CogVideo's own trainer takes a mistyped path for a fresh start, without a word."""
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        recipes.train(changed(config, init_from="nowhere.safetensors"), listener=Silent())
    assert not (config.output / "metrics.jsonl").exists()


def test_float16_is_refused_with_the_reason_before_any_work(config):
    with pytest.raises(ConfigError, match=r"fp16 cannot be trained in: .*CogVideoX-5B.* Use bf16 or fp32"):
        recipes.train(changed(config, precision="fp16"), listener=Silent())
    assert not config.output.exists()


def test_of_one_clip_none_can_be_held_out_and_what_to_set_is_said(config, tmp_path):
    one = changed(config, data__folder=write_films(tmp_path / "one", 17), data__held_out=0.1, loop__batch_size=3)
    with pytest.raises(ConfigError, match=r"Set data\.held_out to at most 0, or add clips"):
        recipes.train(one, listener=Silent())
    outcome = recipes.train(changed(one, data__held_out=0), listener=Silent())
    assert outcome.result.is_complete
    assert (outcome.verdict, outcome.held_out) == (None, ())


def test_the_file_may_be_half_as_large(config):
    adapter = recipes.train(changed(config, dtype="bf16"), listener=Silent()).adapter
    assert {tensor.dtype for pair in read_adapter(adapter).pairs.values() for tensor in (pair.a, pair.b)} == {torch.bfloat16}


def test_the_report_is_one_file_with_all_that_is_to_be_known(config):
    page = recipes.train(config, listener=Silent()).report.read_text()
    for part in (
        "Does it learn?",
        "most noise",
        "Loss",
        "Learning rate",
        "Speed and memory",
        "film number 4",
        "learning_rate =",
    ):
        assert part in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_folder_of_another_run_is_left_as_it_is(config):
    recipes.train(config, listener=Silent())
    before = contents(config.output)
    other = changed(config, data__held_out=2, lora__rank=8, preview__prompts=["a film"], preview__every=1)
    with pytest.raises(ConfigError, match=r"(?s)data \(the clips to train on.*lora\.rank: it has 4, this run 8") as error:
        recipes.train(other, listener=Silent())
    assert "Nothing was changed" in str(error.value)
    assert contents(config.output) == before


def test_a_folder_in_use_is_refused(config):
    with only_run_in(config.output), pytest.raises(ConfigError, match="in use by another run"):
        recipes.train(config, listener=Silent())
    assert [path.name for path in config.output.iterdir()] == [".lock"]


def test_a_rate_that_explodes_on_the_demo_is_stopped_with_advice(config, tmp_path):
    """It is stopped where the model is worth less than nothing, long before anything is infinite."""
    write_stars(tmp_path / "stars", count=4, seed=0)
    quick = {"loop__steps": 60, "loop__batch_size": 1, "data__held_out": 0, "data__folder": tmp_path / "stars"}
    hot = changed(config, **quick, loop__optimizer__learning_rate=1.0, loop__optimizer__warmup_steps=0)
    with pytest.raises(TrainingDivergedError, match=r"Step 1\d: .*star-.*Lower loop\.optimizer\.learning_rate \(now 1\)"):
        recipes.train(hot, listener=Silent())
    assert all(row["relative_loss"] < 5 for row in read_metrics(config.output / "metrics.jsonl"))


def test_a_preview_has_the_base_beside_the_adapter_in_the_report(config):
    shown = changed(config, preview__prompts=["a red circle"], preview__every=2)
    page = recipes.train(shown, listener=Silent()).report.read_text()
    row = page[page.index("a red circle</h3>") :]
    assert row.index(">base<") < row.index(">step 2<")


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "--standalone"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_starts_a_team_that_learns_the_same(config, launcher):
    alone = changed(config, loop__gradient_accumulation=2, preview__prompts=["a red circle", "a star"], preview__every=2)
    team = changed(alone, output=config.output.with_name("team"))
    recipes.train(alone, listener=Silent())
    file = config.output.with_name("run.toml")
    file.write_text(team.toml())
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "reelora", "train", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Trained 2 steps") == 1
    assert ", 2 processes" in done.stderr
    one, other = (read_metrics(c.output / "metrics.jsonl") for c in (alone, team))
    assert [row["step"] for row in other] == [row["step"] for row in one]
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in (one, other)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    films = [sorted(path.name for path in (c.output / "previews").iterdir()) for c in (alone, team)]
    assert films[0] == films[1]
