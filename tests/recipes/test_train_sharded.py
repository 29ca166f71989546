"""Processes that split the base between them, from the command line, on the pocket model."""

import subprocess
import sys

import pytest
from pocket_runs import Lines, changed, small_config, write_films
from stills import save_still_model

from reelora import recipes
from reelora.errors import ConfigError
from reelora.recipes import Silent
from reelora.train import read_metrics

LAUNCH = ["accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--num_processes", "2", "--main_process_port", "0"]


@pytest.fixture
def config(tmp_path):
    settings = {"loop__steps": 2, "loop__batch_size": 3, "loop__evaluate_every": 1, "loop__gradient_accumulation": 2}
    (tmp_path / "clips").mkdir()
    clips = write_films(tmp_path / "clips", *[17] * 5)
    return small_config(tmp_path / "alone", clips, tensorboard=False, data__held_out=3, **settings)


@pytest.mark.slow
def test_a_run_with_odd_numbers_of_previews_and_evaluations_is_that_of_one_process(config):
    """Nine passes of an evaluation and three previews: each process would have to wait for the other, were they shared."""
    alone = changed(config, preview__prompts=["a red circle", "a star", "a film"], preview__every=1)
    recipes.train(alone, listener=Silent())
    split = changed(alone, output=config.output.with_name("split"), loop__shard_base=True)
    file = config.output.with_name("run.toml")
    file.write_text(split.toml())
    done = subprocess.run(
        [sys.executable, "-m", *LAUNCH, "-m", "reelora", "train", str(file)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Trained 2 steps") == 1
    assert ", 2 processes" in done.stderr
    assert "failed" not in done.stderr
    ours, theirs = (read_metrics(c.output / "metrics.jsonl") for c in (split, alone))
    for name in ("loss", "held_out_loss"):
        assert [row[name] for row in ours if name in row] == pytest.approx(
            [row[name] for row in theirs if name in row], rel=1e-4
        )
    films, others = (sorted((c.output / "previews").iterdir()) for c in (split, alone))
    assert [path.name for path in films] == [path.name for path in others]
    assert len(films) == 9
    assert [path.read_bytes() for path in films[:3]] == [path.read_bytes() for path in others[:3]], "those of the base"


def test_one_process_is_told_before_anything_is_encoded(config):
    lines = Lines()
    with pytest.raises(ConfigError, match="this is one: start it with `accelerate launch`"):
        recipes.train(changed(config, loop__shard_base=True), listener=lines)
    assert lines.said == lines.notes == []


def test_text_encoders_that_are_trained_too_are_refused_early(config, tmp_path):
    lines = Lines()
    still = {"model": str(save_still_model("SD 1.5", tmp_path / "still")), "loop__shard_base": True, "text_encoder__rank": 2}
    with pytest.raises(ConfigError, match=r"leave it false, or text_encoder\.rank at 0"):
        recipes.train(changed(config, **still), listener=lines)
    assert lines.said == lines.notes == []
