"""The commands of the guide to data do what it says."""

import re
import shlex
from pathlib import Path

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "data.md").read_text()


def test_every_command_of_the_guide_to_data_runs_and_so_does_its_python(reelora, clips, monkeypatch, capsys):
    monkeypatch.chdir(clips.parent)
    commands = re.findall(r"^    (reelora .*)$", GUIDE, re.MULTILINE)
    assert len(commands) == GUIDE.count("\n    reelora ") == 8
    for line in commands:
        result = reelora(*shlex.split(line)[1:])
        assert result.code == 0, (line, result.err)
    assert Path("sheet.png").stat().st_size > 1000
    (code,) = re.findall(r"```python\n(.+?)```", GUIDE, re.DOTALL)
    exec(code, {})
    assert len(re.findall(r"\d\.mp4 film number \d \(5, 16, 8, 8\)", capsys.readouterr().out)) == 2


def test_every_setting_that_the_guide_names_exists():
    from reelora.recipes import DataConfig

    named = set(re.findall(r"`data\.(\w+)", GUIDE))
    assert named
    assert named <= set(DataConfig.model_fields)
