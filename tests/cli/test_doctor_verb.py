"""``reelora doctor``: what the machine can do, and why an adapter does or does not act on a model."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from reelora.adapters import Adapter, Pair, write_adapter

WIDTH = 192


def write(path, *, out=WIDTH, layers=2, size=0.1):
    draw = torch.Generator().manual_seed(0)
    pairs = {
        f"transformer.transformer_blocks.{layer}.attn1.to_q": Pair(
            torch.randn(4, WIDTH, generator=draw), size * torch.randn(out, 4, generator=draw), 0.5
        )
        for layer in range(layers)
    }
    write_adapter(Adapter(pairs=pairs, spec=None, layout="memory", scale_source="a test"), path)
    return path


def test_the_machine_is_described_with_versions_devices_and_precision(reelora):
    told = json.loads(reelora("doctor", "--json").out)
    assert told["torch"] == torch.__version__
    assert told["devices"][-1].startswith("cpu (")
    assert told["precision auto"] in ("bfloat16", "float32")
    assert "can be written" in reelora("doctor").out


def test_an_adapter_that_fits_is_shown_with_its_strength_and_what_it_changes(reelora, tmp_path):
    told = reelora("doctor", "pocket", write(tmp_path / "a.safetensors", size=3), "--device", "cpu", "--json")
    facts = json.loads(told.out)
    assert (told.code, facts["matched"], facts["scales"], facts["problems"]) == (0, "all 2 modules", [0.5], [])
    assert facts["scale_source"] == "the file's lora_adapter_metadata"
    moved, rounding = map(float, re.findall(r"([\d.]+)%", facts["one tiny forward"][0]))
    assert 5 * rounding < moved < 100


def test_an_adapter_for_another_depth_and_width_is_explained_and_ends_with_2(reelora, tmp_path):
    told = reelora("doctor", "pocket", write(tmp_path / "a.safetensors", layers=12))
    assert told.code == 2
    assert "6 of 12 adapter paths are no Linear" in told.out
    assert "The model has 6 transformer_blocks, the adapter at least 12" in told.out
    told = reelora("doctor", "pocket", write(tmp_path / "b.safetensors", out=64))
    assert (told.code, "is (64, 192), the model's is (192, 192)" in told.out) == (2, True)


def test_an_unknown_strength_is_a_problem_until_it_is_said(reelora, tmp_path):
    silent = tmp_path / "silent.safetensors"
    save_file(load_file(write(tmp_path / "a.safetensors")), silent)
    told = reelora("doctor", "pocket", silent)
    assert (told.code, "! Nothing says how strong it was trained: give --alpha" in told.out) == (2, True)
    assert reelora("doctor", "pocket", silent, "--alpha", "4").code == 0


@pytest.mark.parametrize(("size", "sentence"), [(0.0, "It changes nothing in the transformer"), (1e-3, "nobody will see")])
def test_an_adapter_that_does_nothing_or_nearly_so_is_named(reelora, tmp_path, size, sentence):
    assert sentence in reelora("doctor", "pocket", write(tmp_path / "a.safetensors", size=size)).out


def test_a_model_alone_is_half_a_question(reelora):
    told = reelora("doctor", "pocket")
    assert (told.code, "a model and an adapter, or nothing" in told.err) == (2, True)
