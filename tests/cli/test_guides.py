"""The commands of the guides do what the guides say."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from reelora.adapters import largest_difference, read_adapter
from reelora.pocket import MODEL
from reelora.tensorio import open_tensors, write_tensors

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "adapters.md").read_text()
SAT_LORA = Path(__file__).parents[1] / "golden" / "sat" / "t2v_2b_lora" / "transformer"
CHANGED = "transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture
def folder(reelora, clips, tmp_path, monkeypatch):
    """A folder with what the guide takes as given.

    What the demo's training leaves, a fine-tune of the pocket model, and a checkpoint of SAT (tests/golden).
    """
    monkeypatch.chdir(tmp_path)
    assert reelora("train", "--data", clips, "--steps", 2, "--output", "demo").code == 0
    file = shutil.copytree(MODEL, tmp_path / "my-finetune") / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = {name: tensor.clone() for name, tensor in open_tensors(file).items()}
    weights[CHANGED] += 0.01
    write_tensors(file, weights)
    shutil.copytree(SAT_LORA, tmp_path / "sat-lora")
    return tmp_path


def test_every_command_of_the_guide_to_adapters_runs_and_so_does_its_python(reelora, folder):
    commands = re.findall(r"^    (reelora .*)$", GUIDE, re.MULTILINE)
    assert len(commands) == GUIDE.count("\n    reelora ")
    said = {}
    for line in commands:
        result = reelora(*shlex.split(line)[1:])
        assert result.code == 0, (line, result.err)
        said[line] = result.out + result.err
    assert "the weights that it was trained on" in (folder / "page.html").read_text()
    assert "Nothing says how strong" in said["reelora inspect sat-lora"]
    assert largest_difference(read_adapter(SAT_LORA, producer="sat"), read_adapter("loud.safetensors")) == 0
    assert list(read_adapter("style.safetensors").pairs) == [f"transformer.{CHANGED.removesuffix('.weight')}"]

    Path("both.safetensors").unlink()
    (code,) = re.findall(r"```python\n(.+?)```", GUIDE, re.DOTALL)
    exec(code, {})
    assert read_adapter("both.safetensors").layout == "kohya"
