"""``reelora fuse`` from the command line: what it prints, and what it refuses with one clear line."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reelora.adapters import Adapter, Pair, write_adapter
from reelora.pocket import MODEL

NAMES = [f"transformer.transformer_blocks.{i}.attn1.{leaf}" for i in range(2) for leaf in ("to_q", "to_v")]
WIDTH = 192
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "switching.md"


@pytest.fixture
def style(tmp_path):
    draw = torch.Generator().manual_seed(0)
    pairs = {
        name: Pair(torch.randn(4, WIDTH, generator=draw) * 0.1, torch.randn(WIDTH, 4, generator=draw) * 0.1, 0.5)
        for name in NAMES
    }
    write_adapter(Adapter(pairs=pairs, spec=None, layout="memory", scale_source="a test"), tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


def test_fuse_prints_where_the_model_is_and_says_what_it_did(reelora, style, tmp_path):
    result = reelora("fuse", "pocket", "-a", f"{style}=0.8", "-o", tmp_path / "out", "--check")
    assert (result.code, result.out) == (0, f"{tmp_path / 'out'}\n")
    for text in ("at strength 0.8: 4 modules", "4 of", "Rounding", "Read again and compared bit by bit: 4 fused"):
        assert text in result.err
    assert (tmp_path / "out" / "model_index.json").read_bytes() == (MODEL / "model_index.json").read_bytes()


def test_a_fused_model_generates_like_any_other(reelora, style, tmp_path):
    assert reelora("fuse", "pocket", "-a", style, "-o", tmp_path / "out").code == 0
    video = tmp_path / "a.mp4"
    assert reelora("generate", "a red circle", "--model", tmp_path / "out", "--steps", "1", "-o", video).code == 0
    assert video.exists()


def test_json_is_the_only_thing_on_stdout(reelora, style, tmp_path):
    result = reelora("fuse", MODEL / "transformer", "-a", f"{style}=0.5", "-o", tmp_path / "out", "--json", "--check")
    told = json.loads(result.out)
    assert (told["fused"], told["provenance"]["adapters"][0]["strength"], told["checked"]["fused"]) == (4, 0.5, 4)
    assert set(told["lost"]) == {f"{name}.weight" for name in NAMES}


def test_stochastic_rounding_and_links_are_options(reelora, style, tmp_path):
    for output in ("one", "other"):
        options = ["--rounding", "stochastic", "--seed", "3", "--link"]
        assert reelora("fuse", "pocket", "-a", style, "-o", tmp_path / output, *options).code == 0
    files = [tmp_path / output / "transformer" / "diffusion_pytorch_model.safetensors" for output in ("one", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()
    vaes = [tmp_path / output / "vae" / "diffusion_pytorch_model.safetensors" for output in ("one", "other")]
    assert vaes[0].stat().st_ino == vaes[1].stat().st_ino


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("pocket", "-o", "{tmp}/out", "-a", "{tmp}/none.safetensors"), "none.safetensors"),
        (("pocket", "-o", "{tmp}/out", "-a", "{style}=strong"), "has to be a number"),
        (("pocket", "-o", "{tmp}/out", "-a", "{style}=1", "-a", "{style}=2"), "is given twice"),
        (("pocket", "-o", "{tmp}/out", "-a", "{silent}"), "{silent},alpha=64"),
        (("pocket", "-o", "{tmp}", "-a", "{style}"), "is there already"),
        (("pocket", "-o", "{tmp}/no/out", "-a", "{style}"), "make it first"),
        (("{tmp}/nowhere", "-o", "{tmp}/out", "-a", "{style}"), "hf download"),
        (("{style}", "-o", "{tmp}/out.safetensors", "-a", "{style}"), "are not in the base"),
        (("pocket", "-o", "{tmp}/out", "-a", "{style}", "--rounding", "up"), "There is no rounding 'up'"),
    ],
)
def test_a_users_mistake_is_one_clear_line_and_leaves_nothing(reelora, style, tmp_path, files, command, message):
    silent = tmp_path / "silent.safetensors"
    save_file(load_file(style), silent)
    names = {"style": style, "silent": silent, "tmp": tmp_path}
    before = files()
    result = reelora("fuse", *(part.format(**names) for part in command))
    assert (result.code, result.out) == (2, "")
    assert message.format(**names) in result.err
    assert "Traceback" not in result.err
    assert files() == before


def test_fusing_never_imports_diffusers(style, tmp_path):
    """The whole verb needs torch alone: half of what a tool like this costs is the import."""
    script = (
        "import sys\nfrom reelora.cli.app import app\n"
        f"sys.argv = ['reelora', 'fuse', 'pocket', '-a', {str(style)!r}, '-o', {str(tmp_path / 'out')!r}]\n"
        "app(standalone_mode=False)\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(done.stdout.splitlines()[-1].split()) & {"diffusers", "transformers", "peft"}


def test_the_command_of_the_guide_runs(reelora, style, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    style.rename(tmp_path / "demo" / "adapter.safetensors")
    (command,) = re.findall(r"^    reelora (fuse .*)$", GUIDE.read_text(), re.MULTILINE)
    result = reelora(*shlex.split(command))
    assert (result.code, result.out) == (0, "fused\n"), result.err
