"""Laws of running a model with adapters for a while."""

import copy

import pytest
import torch

from reelora.adapters import Adapter, LoraSpec, Pair
from reelora.errors import AdapterError, ConfigError, MismatchError, UnknownScaleError
from reelora.lora import attach, collect, detach, using

FIRST = "transformer.transformer_blocks.0.attn1.to_q"


def adapter_for(model, *, rank=4, alpha=2.0, seed=0, dtype=torch.float32):
    """A random adapter that fits a model."""
    attach(model, LoraSpec(rank=rank, alpha=alpha), seed=seed)
    bare = collect(model)
    detach(model)
    draw = torch.Generator().manual_seed(seed)
    pairs = {
        name: Pair(pair.a.to(dtype), (torch.randn(pair.b.shape, generator=draw) * 0.1).to(dtype), pair.scale)
        for name, pair in bare.pairs.items()
    }
    return remade(bare, pairs)


def remade(adapter, pairs):
    return Adapter(pairs=pairs, spec=None, layout="memory", scale_source="a test")


def fused(model, uses):
    """A copy of the model with the dense updates added to its weights."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for adapter, strength in uses:
            for name in adapter.pairs:
                twin.get_submodule(name.partition(".")[2]).weight += strength * adapter.delta(name)
    return twin


def close(actual, expected):
    # float32: the update is added to the output here, to the weight there, and a dozen layers follow
    return (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("strength", [1.0, 0.3, -0.5])
def test_an_adapter_acts_as_its_dense_update_does(model, forward, strength):
    adapter = adapter_for(model)
    with using(model, [(adapter, strength)]):
        actual = forward(model)
    assert close(actual, forward(fused(model, [(adapter, strength)])))
    assert not close(actual, forward(model))


def test_several_adapters_add_up_whatever_their_ranks(model, forward):
    uses = [(adapter_for(model, rank=4), 0.7), (adapter_for(model, rank=2, alpha=3.0, seed=1), -0.4)]
    with using(model, uses):
        actual = forward(model)
    assert close(actual, forward(fused(model, uses)))


def test_afterwards_the_original_modules_and_outputs_are_back(model, forward):
    modules, before = dict(model.named_modules()), forward(model)
    with using(model, [(adapter_for(model), 1.0)]):
        assert dict(model.named_modules()) != modules
    assert dict(model.named_modules()) == modules
    assert torch.equal(forward(model), before)


def test_an_error_inside_the_block_restores_the_model_too(transformer):
    modules = dict(transformer.named_modules())
    with pytest.raises(KeyboardInterrupt), using(transformer, [(adapter_for(transformer), 1.0)]):
        raise KeyboardInterrupt
    assert dict(transformer.named_modules()) == modules


def test_strength_zero_runs_the_original_module_objects(transformer):
    modules = dict(transformer.named_modules())
    with using(transformer, [(adapter_for(transformer), 0.0)]):
        assert dict(transformer.named_modules()) == modules


def test_modules_that_no_adapter_touches_stay_the_originals(transformer):
    adapter = adapter_for(transformer)
    with using(transformer, [(remade(adapter, {FIRST: adapter.pairs[FIRST]}), 1.0)]):
        assert type(transformer.transformer_blocks[0].attn1.to_q).__name__ == "StackedLinear"
        assert type(transformer.transformer_blocks[0].attn1.to_k) is torch.nn.Linear


def test_nothing_becomes_trainable_and_nothing_is_saved_with_the_model(transformer):
    parameters, names = list(transformer.parameters()), transformer.state_dict().keys()
    with using(transformer, [(adapter_for(transformer), 1.0)]):
        assert [id(p) for p in transformer.parameters()] == [id(p) for p in parameters]
        assert transformer.state_dict().keys() == names


def test_a_bfloat16_model_runs_a_float32_adapter_in_bfloat16(transformer, forward):
    adapter = adapter_for(transformer)
    with using(transformer, [(adapter, 1.0)]):
        expected = forward(transformer)
    transformer.bfloat16()
    with using(transformer, [(adapter, 1.0)]):
        actual = forward(transformer, dtype=torch.bfloat16)
    assert actual.dtype == torch.bfloat16
    assert (actual.float() - expected).norm() < 0.03 * expected.norm()  # a few roundings of 2^-8


def test_a_training_model_can_be_previewed_with_another_adapter(transformer, forward):
    other = adapter_for(transformer, seed=1)
    attach(transformer, LoraSpec(rank=4, alpha=4))
    before = forward(transformer)
    with using(transformer, [(other, 1.0)]):
        assert not torch.equal(forward(transformer), before)
        with pytest.raises(MismatchError, match="wrapped by something else"):
            detach(transformer)
        transformer.train()
        transformer.eval()
    assert torch.equal(forward(transformer), before)
    detach(transformer)


def test_nested_blocks_add_up(transformer, forward):
    one, two = adapter_for(transformer), adapter_for(transformer, seed=1)
    with using(transformer, [(one, 1.0)]), using(transformer, [(two, 1.0)]):
        actual = forward(transformer)
    assert close(actual, forward(fused(transformer, [(one, 1.0), (two, 1.0)])))


def test_no_branch_is_attached_inside_a_block(transformer):
    with using(transformer, [(adapter_for(transformer), 1.0)]), pytest.raises(MismatchError, match="leave `using`"):
        attach(transformer, LoraSpec(rank=4))


def broken(adapter, name=FIRST, **pair):
    old = adapter.pairs[name]
    new = Pair(pair.get("a", old.a), pair.get("b", old.b), pair.get("scale", old.scale))
    return remade(adapter, {**adapter.pairs, name: new})


def test_everything_is_checked_before_the_first_edit(transformer):
    good, modules = adapter_for(transformer), dict(transformer.named_modules())
    deep = {name.replace("blocks.1", "blocks.41"): pair for name, pair in good.pairs.items()}
    nan = good.pairs[FIRST].b.clone()
    nan[0, 0] = float("nan")
    for wrong, error, message in [
        (
            remade(good, deep),
            MismatchError,
            r"4 of 8 adapter paths.*blocks\.41.*\n.*has 2 .*at least 42",
        ),
        (broken(good, a=torch.ones(4, 16)), MismatchError, r"\(32, 16\), the model's is \(32, 32\)"),
        (broken(good, scale=None), UnknownScaleError, "1 of 8"),
        (broken(good, b=nan), AdapterError, "NaN"),
    ]:
        with pytest.raises(error, match=message), using(transformer, [(good, 1.0), (wrong, 1.0)]):
            pass
        assert dict(transformer.named_modules()) == modules
    with pytest.raises(ConfigError, match="inf"), using(transformer, [(good, float("inf"))]):
        pass


def test_an_adapter_of_another_role_is_refused(transformer, unet):
    with (
        pytest.raises(MismatchError, match="32 adapter paths are for the unet"),
        using(transformer, [(adapter_for(unet), 1.0)]),
    ):
        pass
