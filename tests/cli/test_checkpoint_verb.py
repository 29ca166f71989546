"""``reelora checkpoint`` and SAT models on the command line."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import GOLDEN
from PIL import Image
from sat import base_of, yamls

from reelora.components import load_components
from reelora.pocket import MODEL
from reelora.tensorio import open_tensors, same_bytes

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "sat.md").read_text()
PROMPT = "a red circle moves left on a grey background"


@pytest.fixture(scope="session")
def pocket(tmp_path_factory):
    """The pocket model as a SAT checkpoint."""
    from reelora.recipes import Silent, convert_checkpoint

    folder = tmp_path_factory.mktemp("pocket") / "sat"
    convert_checkpoint("pocket", folder, form="sat", listener=Silent())
    return folder


def test_there_and_back_gives_the_same_model(reelora, tmp_path):
    there = reelora("checkpoint", "pocket", tmp_path / "sat", "--to", "sat", "--mp", "2", "--check")
    assert (there.code, there.out) == (0, f"{tmp_path / 'sat'}\n")
    assert "read again and equal bit by bit" in there.err
    back = reelora("checkpoint", tmp_path / "sat", tmp_path / "back", "--to", "diffusers", "--check", "--json")
    assert back.code == 0, back.err
    told = json.loads(back.out)
    assert (told["form"], told["checked"]) == ("diffusers", told["tensors"])
    for role in ("transformer", "vae", "text_encoder"):
        first, second = open_tensors(MODEL / role), open_tensors(tmp_path / "back" / role)
        assert set(first) == set(second)
        assert all(same_bytes(first[name], second[name]) for name in first)
    assert load_components(tmp_path / "back").facts == load_components(MODEL, roles=[]).facts


def test_generating_from_the_sat_copy_of_the_pocket_model_gives_the_same_video(reelora, pocket, tmp_path):
    options = ["--precision", "fp32", "--steps", "2", "--seed", "5"]
    for name, model in (("sat", pocket), ("diffusers", "pocket")):
        folder = tmp_path / name
        folder.mkdir()
        result = reelora("generate", PROMPT, "--model", model, "-o", folder / "frame.png", *options)
        assert result.code == 0, result.err
    frames = [sorted((tmp_path / name).iterdir()) for name in ("sat", "diffusers")]
    assert len(frames[0]) == len(frames[1]) == 17
    for first, second in zip(*frames, strict=True):
        pixels = [np.asarray(Image.open(file)).astype(int) for file in (first, second)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_its_latents_are_within_a_thousandth(pocket):
    import torch

    from reelora import Session

    pipelines = []
    for path in (pocket, MODEL):
        session = Session(path, dtype=torch.float32)
        config = session.config(steps=2, seed=5)
        session.parts.load("text_encoder")
        pipeline: Any = session.parts.pipeline()
        pipeline.set_progress_bar_config(disable=True)
        pipelines.append(
            pipeline(
                PROMPT,
                num_frames=config.num_frames,
                height=config.height,
                width=config.width,
                num_inference_steps=2,
                max_sequence_length=24,
                generator=torch.Generator().manual_seed(5),
                output_type="latent",
            ).frames
        )
    assert float((pipelines[0] - pipelines[1]).abs().max()) < 1e-3


def test_a_yaml_alone_says_which_model_to_generate_with(reelora, pocket, tmp_path):
    options = ["--sat-config", pocket / "model.yaml", "--steps", "1", "-o", tmp_path / "a.mp4"]
    result = reelora("generate", PROMPT, *options)
    assert result.code == 0, result.err
    assert (tmp_path / "a.mp4").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("{sat}", "{tmp}/out", "--to", "diffusers"), "pass its YAML files with sat_config"),
        (("{sat}", "{tmp}/out", "--to", "diffusers", "--sat-config", "{tmp}/none.yaml"), "none.yaml"),
        (("pocket", "{tmp}/out", "--to", "dif"), "There is no form 'dif'"),
        (("pocket", "{tmp}", "--to", "sat"), "is there already"),
        (("pocket", "{tmp}/no/out", "--to", "sat"), "make it first"),
        (("pocket", "{tmp}/out", "--to", "sat", "--path", "vae"), "is no ROLE=PATH"),
        (("pocket", "{tmp}/out", "--to", "sat", "--path", "vea=x"), "did you mean 'vae'"),
        (("{tmp}/nowhere", "{tmp}/out", "--to", "sat"), "nowhere"),
    ],
)
def test_a_users_mistake_is_one_clear_line_and_leaves_nothing(reelora, tmp_path, command, message):
    names = {"sat": base_of("t2v_2b", tmp_path / "sat"), "tmp": tmp_path}
    result = reelora("checkpoint", *(part.format(**names) for part in command))
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert "Traceback" not in result.err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["sat"]


def test_every_command_of_the_guide_runs_and_so_does_its_python(reelora, pocket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pocket, tmp_path / "pocket-sat")
    lora = GOLDEN / "t2v_2b_lora"
    shutil.copytree(lora / "transformer", tmp_path / "lora-sat")
    shutil.copy(yamls("t2v_2b_lora")[0], tmp_path / "lora.yaml")
    shutil.copytree(GOLDEN / "t2v_2b_mp2" / "transformer", tmp_path / "shards")
    shutil.copy(yamls("t2v_2b")[0], tmp_path / "base.yaml")
    commands = re.findall(r"^    reelora (.*)$", GUIDE, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        result = reelora(*shlex.split(command))
        assert result.code == 0, (command, result.err)
    for code in re.findall(r"```python\n(.+?)```", GUIDE, re.DOTALL):
        exec(code, {})
