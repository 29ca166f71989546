"""The commands of the guide to training do what it says."""

import re
import shlex
from pathlib import Path

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


def test_the_pictures_of_the_guide_are_there():
    pictures = re.findall(r"\]\(\.\./(pictures/[^)]+)\)", GUIDE)
    assert pictures
    assert all((DOCS / name).is_file() for name in pictures)
