"""Real adapter files with something wrong: refused, or read with every tensor accounted for."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from corpus import CASES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from reelora.adapters import read_adapter
from reelora.errors import ReeloraError

FILES = [case for case in CASES if case.layout not in ("sat", "cloneofsimo-list")]
NOISE = ["", ".", "_", "0", "9", "a", "lora_", ".weight", "..", "/", "\\", "\u00e4", "transformer.", "alpha", " "]


@cache
def content(index):
    """Tensors and header of one file of the corpus."""
    with TemporaryDirectory() as folder:
        path = FILES[index].make(Path(folder))
        path = next(path.glob("*.safetensors")) if path.is_dir() else path
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


@st.composite
def damaged(draw):
    """A file of the corpus with names, shapes, tensors or header entries changed."""
    tensors, metadata = (dict(part) for part in content(draw(st.integers(0, len(FILES) - 1))))
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(tensors))) if tensors else ""
        kind = draw(st.sampled_from(["drop", "rename", "reshape", "add", "header", "same"]))
        if kind == "drop" and name:
            del tensors[name]
        elif kind == "rename" and name:
            place = draw(st.integers(0, len(name)))
            tensors[name[:place] + draw(st.sampled_from(NOISE)) + name[place + draw(st.integers(0, 3)) :]] = tensors.pop(name)
        elif kind == "reshape" and name:
            tensors[name] = torch.ones(draw(st.lists(st.integers(0, 5), max_size=4)))
        elif kind == "add":
            tensors[draw(st.text(max_size=12)) + draw(st.sampled_from(NOISE))] = torch.ones(2, 2)
        elif kind == "header":
            value = draw(st.none() | st.integers() | st.text(max_size=5) | st.dictionaries(st.text(max_size=5), st.integers()))
            metadata[draw(st.sampled_from([*metadata, "ss_network_alpha", "lora_config", "alpha"]))] = json.dumps(value)
    return tensors, metadata


def check(tensors, metadata, path):
    save_file(tensors, path, metadata={key: text for key, text in metadata.items() if text.isascii()})
    try:
        adapter = read_adapter(path)
    except ReeloraError:
        return
    held = sum(1 for pair in adapter.pairs.values() for _ in (pair.a, pair.b))
    assert held + len(adapter.tokens) <= 2 * len(tensors)
    assert adapter.pairs
    for name, pair in adapter.pairs.items():
        if pair.scale is not None and not pair.magnitude and pair.is_finite:
            assert adapter.spec is None or adapter.delta(name).shape == pair.shape


PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@settings(PATIENT, max_examples=200)
@given(damaged())
def test_a_damaged_adapter_is_refused_or_wholly_explained(tmp_path, changed):
    tensors, metadata = changed
    check(tensors, metadata, tmp_path / "adapter.safetensors")


@pytest.mark.slow
@settings(PATIENT, max_examples=5000)
@given(damaged())
def test_thousands_of_damaged_adapters_are_refused_or_wholly_explained(tmp_path, changed):
    tensors, metadata = changed
    check(tensors, metadata, tmp_path / "adapter.safetensors")
