"""Adapters that somebody made to do harm: one clear error each, in bounded time and memory, with nothing raw in it."""

import json
import time
from contextlib import contextmanager

import pytest
import torch
from corpus import CASES
from psutil import Process
from safetensors.torch import save_file

from reelora.adapters import read_adapter
from reelora.errors import AdapterError, FileFormatError, ReeloraError

BLOCK = "transformer_blocks.{}.attn1.to_q"


def pairs(count=1, prefix="transformer."):
    tensors = {}
    for number in range(count):
        name = prefix + BLOCK.format(number)
        tensors |= {f"{name}.lora_A.weight": torch.ones(4, 8), f"{name}.lora_B.weight": torch.ones(6, 4)}
    return tensors


def with_settings(path, tensors, **settings):
    packed = {f"transformer.{name}": value for name, value in ({"r": 4, "lora_alpha": 2} | settings).items()}
    save_file(tensors, path, metadata={"lora_adapter_metadata": json.dumps(packed)})
    return path


@contextmanager
def within(seconds, megabytes=100):
    """Processor time and memory that may be taken inside."""
    start, before = time.process_time(), Process().memory_info().rss
    yield
    assert time.process_time() - start < seconds
    assert (Process().memory_info().rss - before) / 1e6 < megabytes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "adapter.safetensors"


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize(
    "pattern", ["a?" * 27 + "a" * 27, "(a|a)" * 26, ".*.*.*b", "([a-z_.]*[a-z_.]*)?" * 9 + "b", "(" * 50 + "a?" + ")" * 50]
)
def test_an_expression_made_to_be_slow_is_matched_in_no_time(path, field, pattern):
    """With a matcher that goes back, each of them takes from seconds to ages on these paths."""
    with_settings(path, pairs(100), **{field: {pattern: 4}})
    with within(2):
        assert read_adapter(path).pairs["transformer.transformer_blocks.7.attn1.to_q"].scale == 0.5


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a+)+", "cannot stand"),
        ("(a|b)*", "cannot stand"),
        ("a{1,9}", "cannot stand"),
        ("(?=a)a", "cannot stand"),
        (r"(a)\1", "cannot stand"),
        (r"\bto_q", "cannot stand"),
        ("[[:alpha:]]", "cannot stand"),
        ("a)", "closes a bracket"),
        ("(" * 60 + "a", "never closed"),
        ("^a|b", "into brackets"),
        ("", "1 to 200"),
        ("a?" * 200, "1 to 200"),
        ("\x1b[2J", r"'\\x1b"),
    ],
)
def test_an_expression_of_another_kind_is_refused_by_name(path, pattern, message):
    with pytest.raises(AdapterError, match=message) as caught:
        read_adapter(with_settings(path, pairs(), rank_pattern={pattern: 4}))
    assert len(str(caught.value)) < 1000


def test_expressions_are_few_and_plain_paths_many(path):
    many = {f"blocks{number}.*": 4 for number in range(10_000)}
    with within(2), pytest.raises(AdapterError, match="10000 patterns are no plain paths, more than 8"):
        read_adapter(with_settings(path, pairs(100), rank_pattern=many))
    plain = {BLOCK.format(number): 4 for number in range(20_000)}
    with within(2):
        read_adapter(with_settings(path, pairs(100), rank_pattern=plain, alpha_pattern=plain, target_modules=[*plain]))


def test_ten_thousand_wrong_ranks_are_counted_and_three_shown(path):
    wrong = {f"{'x' * 5000}{number}": -number for number in range(10_000)}
    with within(5), pytest.raises(AdapterError, match=r"rank_pattern\['x") as caught:
        read_adapter(with_settings(path, pairs(), rank_pattern=wrong))
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "key", ["\x1b[2J\x1b]0;owned\x07", "\u202e" + "evil", "x" * 1_000_000, "a\nb", "lora_unet_input_blocks_" + "_" * 80_000]
)
def test_names_reach_the_reader_quoted_and_short(path, key):
    save_file(pairs() | {key: torch.ones(1)}, path)
    with within(1), pytest.raises(ReeloraError) as caught:
        read_adapter(path, alpha=1)
    text = str(caught.value)
    assert len(text) < 1000
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert "a\nb" not in text


def test_values_of_the_header_reach_the_reader_quoted_and_short(path):
    for settings in (
        {"r": "\x1b" * 10_000},
        {"lora_alpha": ["\x1b"] * 10_000},
        {"bias": "\x1b" * 10_000},
        {"peft_type": "\x1b"},
    ):
        with pytest.raises(AdapterError) as caught:
            read_adapter(with_settings(path, pairs(), **settings))
        assert len(str(caught.value)) < 1000
        assert "\x1b" not in str(caught.value)


def test_a_file_of_very_many_tensors_is_refused(path):
    save_file({str(number): torch.ones(1) for number in range(50_001)}, path)
    with within(10), pytest.raises(AdapterError, match="holds 50,001 tensors"):
        read_adapter(path)


def test_a_lokr_of_a_few_kilobytes_cannot_claim_a_gigabyte(path):
    """115 kB of w1 and w2 make an update of 14,400 x 14,400; a hundred of them are read and looked at."""
    tensors = {
        f"lora_unet_transformer_blocks_{block}_attn1_to_q.lokr_{side}": torch.ones(120, 120)
        for block in range(100)
        for side in ("w1", "w2")
    }
    save_file(tensors, path)
    with within(2):
        adapter = read_adapter(path)
        assert {(pair.kind, pair.rank) for pair in adapter.pairs.values()} == {("LoKr", 14_400)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 20_000, "no valid YAML"),
        ("{a: " * 20_000, "no valid YAML"),
        ("a: " + "9" * 5_000, "no usable model|no valid YAML"),
        ("!!python/object/apply:os.system ['true']", "no valid YAML"),
        ("# " + "x" * 1_000_000, "1,000,002 bytes are no SAT YAML"),
    ],
)
def test_a_yaml_made_to_do_harm_is_refused(tmp_path, text, message):
    folder = next(case for case in CASES if case.name == "SAT").make(tmp_path)
    (tmp_path / "sat.yaml").write_text(text)
    with within(5), pytest.raises((AdapterError, FileFormatError), match=message):
        read_adapter(folder, sat_config=tmp_path / "sat.yaml")


def test_a_yaml_that_holds_itself_a_thousand_million_times_is_not_written_out(tmp_path):
    folder = next(case for case in CASES if case.name == "SAT").make(tmp_path)
    lists = "\n".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 12))
    layers = ("model", "network_config", "params", "modules", "lora_config", "params")
    nested = "\n".join(f"{'  ' * depth}{key}:" for depth, key in enumerate(layers))
    (tmp_path / "sat.yaml").write_text(f"x0: &x0 [1]\n{lists}\n{nested} {{r: *x11, lora_alpha: *x11}}\n")
    with within(5), pytest.raises(AdapterError, match="r is a list, lora_alpha a list"):
        read_adapter(folder, sat_config=tmp_path / "sat.yaml")


@pytest.mark.parametrize(
    "name", ["no-such-dir/x.safetensors", "no-such-dir/x.pt", "a/b/c", "./x", "../x", "no-such-dir/adapter_config.json", "/a/b"]
)
def test_a_mistyped_path_is_no_hub_id_and_never_asks_the_network(name):
    with within(1), pytest.raises(FileNotFoundError) as caught:
        read_adapter(name)
    assert "hub" not in str(caught.value)
