"""Training goes on with an adapter of any dialect, at the strength that it was trained with."""

import math

import pytest
import torch

from reelora.adapters import WRITTEN, LoraSpec, read_adapter, write_adapter
from reelora.errors import MismatchError, UnknownScaleError
from reelora.lora import TrainableLinear, attach, collect
from reelora.tensorio import write_tensors
from reelora.train import begin_from

SPEC = LoraSpec(rank=4, alpha=8)
ENDINGS = {"sat": ".pt", "peft": ""}


@pytest.fixture
def trained(branched):
    """A model with branches that do something."""
    model = branched()
    draw = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, TrainableLinear):
            torch.nn.init.normal_(module.lora_b, std=0.1, generator=draw)
    return model


@pytest.fixture
def bare():
    from small_run import make_transformer

    return make_transformer


def deltas(adapter):
    return {name: adapter.delta(name) for name in adapter.pairs}


def assert_same_update(one, other, *, tolerance):
    expected, actual = deltas(one), deltas(other)
    assert actual.keys() == expected.keys()
    assert all((actual[name] - delta).norm() <= tolerance * delta.norm() for name, delta in expected.items())


@pytest.mark.parametrize("layout", WRITTEN)
def test_an_adapter_of_any_dialect_is_gone_on_with_at_its_strength(trained, bare, tmp_path, layout):
    path = tmp_path / f"adapter{ENDINGS.get(layout, '.safetensors')}"
    write_adapter(collect(trained), path, layout=layout)
    model = bare()
    attach(model, SPEC)
    begin_from(model, read_adapter(path, alpha=1 if layout == "sat" else None), SPEC)
    assert_same_update(collect(trained), collect(model), tolerance=1e-6)  # one rounding of B to float32


def test_of_the_same_scale_every_bit_is_taken_over(trained, bare):
    model, adapter = bare(), collect(trained)
    spec = LoraSpec(rank=4, alpha=4)
    attach(model, spec)
    begin_from(model, adapter, spec)
    assert all(torch.equal(pair.b, adapter.pairs[name].b) for name, pair in collect(model).pairs.items())


def test_the_settings_may_ask_for_rank_stabilised_scale(trained, bare):
    model, spec = bare(), LoraSpec(rank=4, alpha=4, rslora=True)
    attach(model, spec)
    begin_from(model, collect(trained), spec)
    assert {pair.scale for pair in collect(model).pairs.values()} == {4 / math.sqrt(4)}
    assert_same_update(collect(trained), collect(model), tolerance=1e-6)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (LoraSpec(rank=8, alpha=8), r"of rank 4, attached is rank 8"),
        (LoraSpec(rank=4, alpha=4, target_modules=("to_q",)), r"6 modules have no branch"),
        (
            LoraSpec(rank=4, alpha=4, target_modules=("to_q", "to_k", "to_v", "to_out.0", "norm1.linear")),
            r"2 branches have no pair",
        ),
    ],
)
def test_other_ranks_and_modules_are_listed_and_nothing_is_changed(trained, bare, spec, sentence):
    model = bare()
    attach(model, spec)
    with pytest.raises(MismatchError, match=sentence):
        begin_from(model, collect(trained), spec)
    assert not any(pair.b.any() for pair in collect(model).pairs.values())


def test_an_adapter_of_unknown_strength_is_refused(trained, bare, tmp_path):
    bare_names = {name.removeprefix("transformer."): pair for name, pair in collect(trained).pairs.items()}
    tensors = {f"{n}.lora_{side}.weight": t for n, pair in bare_names.items() for side, t in (("A", pair.a), ("B", pair.b))}
    write_tensors(tmp_path / "unknown.safetensors", {f"transformer.{name}": tensor for name, tensor in tensors.items()})
    model = bare()
    attach(model, SPEC)
    with pytest.raises(UnknownScaleError):
        begin_from(model, read_adapter(tmp_path / "unknown.safetensors"), SPEC)
    begin_from(model, read_adapter(tmp_path / "unknown.safetensors", alpha=4), SPEC)
    assert_same_update(collect(trained), collect(model), tolerance=1e-6)


@pytest.mark.parametrize("rslora", [False, True])
def test_what_patterns_and_rslora_trained_is_read_back_at_the_same_strength(
    bare, clips, held_out, diffusion, config, tmp_path, rslora
):
    """D1: no strength is lost on the way from training to the file."""
    from reelora.train import Lesson, train

    spec = LoraSpec(rank=4, alpha=2, rslora=rslora, rank_pattern={"to_q": 2}, alpha_pattern={"to_v": 3.0})
    model = bare()
    attach(model, spec)
    train(Lesson(model=model, clips=clips, held_out=held_out, diffusion=diffusion, identity={}), config, tmp_path / "run")
    write_adapter(collect(model), tmp_path / "adapter.safetensors")
    again = read_adapter(tmp_path / "adapter.safetensors")
    assert_same_update(collect(model), again, tolerance=0)
    assert {pair.rank for name, pair in again.pairs.items() if name.endswith("to_q")} == {2}
    root = math.sqrt if rslora else float
    assert {pair.scale for name, pair in again.pairs.items() if name.endswith("to_v")} == {3 / root(4)}
