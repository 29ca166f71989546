"""The commands of the guides do what the guides say."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from reelora.adapters import Adapter, Pair, write_adapter

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
NAMES = [f"transformer.transformer_blocks.{i}.attn1.{leaf}" for i in range(6) for leaf in ("to_q", "to_k", "to_v", "to_out.0")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder as it is after ``make demo``, with a file that CogVideo's trainer might have written beside it."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for path, rank in (("demo/adapter.safetensors", 16), ("pytorch_lora_weights.safetensors", 128)):
        pairs = {
            name: Pair(torch.randn(rank, 192, generator=generator), torch.randn(192, rank, generator=generator), 0.5)
            for name in NAMES
        }
        Path(path).parent.mkdir(exist_ok=True)
        write_adapter(Adapter(pairs=pairs, spec=None, layout="memory", scale_source="a test"), path)
    return tmp_path


def commands(guide: str) -> list[str]:
    """The indented ``reelora`` lines that need no hub."""
    lines = re.findall(r"^    (reelora .*)$", (GUIDES / guide).read_text(), re.MULTILINE)
    return [line for line in lines if "CogVideoX-5b" not in line]


def test_the_guide_to_adapters_runs_as_it_stands(reelora, folder):
    for line in commands("adapters.md"):
        result = reelora(*shlex.split(line)[1:])
        assert result.code == 0, (line, result.err)
    assert (folder / "both.safetensors").exists()
