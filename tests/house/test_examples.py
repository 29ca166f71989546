"""The examples run."""

import importlib.util
from pathlib import Path

import pytest
import torch
from PIL import Image

from reelora.adapters import Adapter, LoraSpec, Pair, write_adapter

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = [f"transformer.transformer_blocks.{i}.attn1.{leaf}" for i in range(6) for leaf in ("to_q", "to_k", "to_v", "to_out.0")]


@pytest.fixture
def adapter(tmp_path):
    """A file for the pocket model, such as the demo leaves."""
    draw = torch.Generator().manual_seed(0)
    pairs = {name: Pair(torch.randn(4, 192, generator=draw), torch.randn(192, 4, generator=draw) / 50, 0.5) for name in NAMES}
    held = Adapter(pairs=pairs, spec=LoraSpec(rank=4, alpha=2), layout="memory", scale_source="a test")
    write_adapter(held, tmp_path / "adapter.safetensors")
    return tmp_path / "adapter.safetensors"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_stock_pipeline_runs_with_a_rack_in_its_middle(adapter, tmp_path, capsys):
    example("stock_pipeline").main("pocket", str(adapter), str(tmp_path / "video.mp4"))
    assert (tmp_path / "video.mp4").stat().st_size > 1000
    assert "1 adapters, fused: 24 modules fused" in capsys.readouterr().out


def test_an_adapter_is_switched_live(adapter, tmp_path, capsys, monkeypatch):
    module = example("switch_live")
    strips = []
    draw_all = module.draw_all
    monkeypatch.setattr(module, "draw_all", lambda made: draw_all(strips.extend(made) or made))
    module.main(str(adapter), str(tmp_path / "sheet.png"), steps=2)
    pixels = dict(zip(module.STATES, (strip.tobytes() for strip in strips), strict=True))
    assert pixels["nothing acts"] == pixels["restored, nothing acts"]
    assert len(set(pixels.values())) == len(pixels) - 1
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 3 * strips[0].width
    assert "1 adapters, fused: 24 modules fused" in capsys.readouterr().out


def test_a_session_makes_a_queue(adapter, tmp_path, capsys):
    example("queue").main("pocket", str(adapter), str(tmp_path), steps=1)
    assert len(list(tmp_path.glob("?.mp4"))) == 6
    order = [line.rpartition("/")[2].partition(".mp4")[0] for line in capsys.readouterr().out.splitlines()]
    assert order == ["0", "3", "1", "4", "2", "5"]  # by strength, so that adapters change as seldom as can be
