"""Headers that lie about the file, or that aim at the terminal of whoever looks at it."""

import json
import sys
import unicodedata

import pytest
import torch
from safetensors.torch import save_file

from reelora.cli import main
from reelora.recipes import plain

NAME = "transformer.transformer_blocks.0.attn1.to_q"
TRUTH = {"layout": "diffusers", "modules": 1, "scales": [0.5], "base": ["pocket"], "content_hash": None}
CLEAR = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202etxt.exe"


@pytest.fixture
def inspect(tmp_path, monkeypatch, capsys):
    """What ``reelora inspect`` prints of a file with these entries in its header."""

    def run(entries, *options):
        config = {"transformer.r": 2, "transformer.lora_alpha": 1}
        metadata = {"lora_adapter_metadata": json.dumps(config), **entries}
        tensors = {f"{NAME}.lora_A.weight": torch.ones(2, 192), f"{NAME}.lora_B.weight": torch.ones(192, 2)}
        save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
        monkeypatch.setattr(sys, "argv", ["reelora", "inspect", str(tmp_path / "a.safetensors"), *options])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("prefix", ["reelora.", "", "reelora.reelora."])
def test_what_a_file_says_of_itself_never_passes_for_what_was_found(inspect, prefix):
    lies = {
        f"{prefix}{name}": json.dumps(lie)
        for name, lie in {
            "layout": "kohya",
            "modules": 99,
            "scales": [7],
            "base": "SDXL",
            "content_hash": "ab",
            "kind": "safe",
        }.items()
    }
    facts = json.loads(inspect(lies, "--json"))
    assert {name: facts.get(name) for name in TRUTH} == TRUTH
    assert facts["kind"] == "LoRA"
    told = facts["metadata"] if not prefix else facts["provenance"]
    assert set(lies.values()) <= set(told.values())


@pytest.mark.parametrize("name", ["reelora.trigger_words", "ss_comment", "sshs_model_hash", CLEAR])
def test_no_control_character_of_a_file_reaches_the_terminal(inspect, name):
    for options in ((), ("--deep",), ("--json",)):
        printed = inspect({name: f"{CLEAR}\n! all is well"}, *options)
        odd = {letter for letter in printed.replace("\n", "") if unicodedata.category(letter) in ("Cc", "Cf")}
        assert not odd, options
        assert "\n! all is well" not in printed


@pytest.mark.timeout(60)
def test_megabytes_of_metadata_are_shortened_for_people_and_whole_for_programs(inspect):
    entries = {"ss_tag_frequency": "x" * 1_000_000, "reelora.data": "y" * 1_000_000} | {f"ss_{n}": "z" for n in range(5000)}
    assert len(inspect(entries)) < 5000
    assert len(json.loads(inspect(entries, "--json"))["metadata"]["ss_tag_frequency"]) == 1_000_000


@pytest.mark.parametrize(
    ("text", "shown"),
    [("Tür 星", "Tür 星"), ("a\nb\t", r"a\nb\t"), ("\x9b", r"\x9b"), ("\u202e", r"\u202e"), ("'\\", "'\\")],
)
def test_visible_letters_stay_and_all_others_are_spelled_out(text, shown):
    assert plain(text) == shown
