"""The commands and the Python of the guide to generating run as they stand, and do what it says."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from reelora.adapters import Adapter, LoraSpec, Pair, write_adapter

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = (DOCS / "guides" / "generate.md").read_text()
NAMES = [f"transformer.transformer_blocks.{i}.attn1.{leaf}" for i in range(6) for leaf in ("to_q", "to_k", "to_v", "to_out.0")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with an adapter such as the demo leaves, and the guide's own file of prompts."""
    draw = torch.Generator().manual_seed(0)
    pairs = {name: Pair(torch.randn(4, 192, generator=draw), torch.randn(192, 4, generator=draw) / 50, 0.5) for name in NAMES}
    (tmp_path / "demo").mkdir()
    held = Adapter(pairs=pairs, spec=LoraSpec(rank=4, alpha=2), layout="memory", scale_source="a test")
    write_adapter(held, tmp_path / "demo" / "adapter.safetensors")
    (rows,) = re.findall(r"```json\n(.+?)```", GUIDE, re.DOTALL)
    (tmp_path / "jobs.jsonl").write_text(rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_guide_runs(reelora, folder):
    commands = re.findall(r"^    (reelora .*)$", GUIDE, re.MULTILINE)
    assert len(commands) == GUIDE.count("\n    reelora ")
    for line in commands:
        result = reelora(*shlex.split(line)[1:])
        assert result.code == 0, (line, result.err)
        if "--resume" in line:
            assert "2 were there already" in result.out
    assert {path.name for path in folder.glob("many*")} == {*(f"many-{i}.mp4" for i in range(4)), "many.png"}
    assert (folder / "twinkle.mp4").is_file()
    assert len(list(folder.glob("sweep-[0-8].mp4"))) == 9
    assert (folder / "again.mp4").read_bytes() == (folder / "sweep-4.mp4").read_bytes()
    assert (folder / "other.mp4").read_bytes() != (folder / "sweep-4.mp4").read_bytes()


def test_its_python_runs(folder):
    (code,) = re.findall(r"```python\n(.+?)```", GUIDE, re.DOTALL)
    exec(code, {})
    assert len(list(folder.glob("star-?.mp4"))) == 3


def test_its_pictures_are_there():
    pictures = re.findall(r"\]\(\.\./(pictures/[^)]+)\)", GUIDE)
    assert pictures
    assert all((DOCS / name).is_file() for name in pictures)
