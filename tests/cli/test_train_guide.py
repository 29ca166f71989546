"""The commands of the guide to training do what it says."""

import re
import shlex
import tomllib
from pathlib import Path

from reelora.recipes import TrainConfig
from reelora.recipes.demo.run import DEFAULT_PLAN, demo_config
from reelora.train import read_metrics

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = (DOCS / "guides" / "train.md").read_text()


def test_every_command_of_the_guide_to_training_runs(reelora, clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    (reelora .*)$", GUIDE, re.MULTILINE)
    assert len(commands) == GUIDE.count("\n    reelora ") == 7
    for line in commands:
        result = reelora(*shlex.split(line)[1:])
        assert result.code == 0, (line, result.err)
    assert [row["step"] for row in read_metrics(Path("runs/star/metrics.jsonl"))] == [0, 1, 2, 3, 4]
    assert "how often it is seen" in Path("timesteps.html").read_text()
    assert Path("star.mp4").is_file()


def test_every_piece_of_a_settings_file_in_the_guide_is_one():
    pieces = [TrainConfig.of(tomllib.loads(text)) for text in re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)]
    assert len(pieces) == GUIDE.count("```toml") == 3
    assert {config.text_encoder.rank for config in pieces} == {0, 8}


def test_the_settings_of_the_pictures_are_those_of_the_demo_with_half_its_steps():
    (text,) = re.findall(r"```toml\n(output = .*?)```", GUIDE, re.DOTALL)
    shown, demo = TrainConfig.of(tomllib.loads(text)), demo_config(Path("demo"), DEFAULT_PLAN, device="auto", seed=0)
    assert (shown.lora, shown.data.folder, shown.data.held_out) == (demo.lora, demo.data.folder, demo.data.held_out)
    assert shown.prior.folder == demo.prior.folder
    assert shown.loop == demo.loop.model_copy(update={"steps": demo.loop.steps // 2, "evaluate_every": 20})


def test_the_pictures_of_the_guide_are_there():
    pictures = re.findall(r"\]\(\.\./(pictures/[^)]+)\)", GUIDE)
    assert pictures
    assert all((DOCS / name).is_file() for name in pictures)
