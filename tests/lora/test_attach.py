"""Laws of putting trainable branches on a model and taking them off."""

import copy

import peft
import pytest
import torch
from torch import nn

from reelora.adapters import Adapter, LoraSpec, Pair
from reelora.errors import ConfigError, MismatchError, UnknownScaleError
from reelora.lora import TrainableLinear, attach, collect, detach, load_into, role_of

SPEC = LoraSpec(rank=4, alpha=2)


def modules_of(model):
    return dict(model.named_modules())


def fill_b(model, seed=3):
    """Give every branch an effect."""
    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, TrainableLinear):
            nn.init.normal_(module.lora_b, std=0.1, generator=draw)


def zero_b(model):
    for module in model.modules():
        if isinstance(module, TrainableLinear):
            nn.init.zeros_(module.lora_b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_at_the_start_is_bit_for_bit_the_bases(model, forward, dtype):
    model.to(dtype)
    before = forward(model, dtype=dtype)
    attach(model, SPEC)
    assert torch.equal(forward(model, dtype=dtype), before)


@pytest.mark.parametrize(("fixture", "expected"), [("transformer", 2 * 4), ("unet", 4 * 8)])
def test_every_attention_projection_is_reached_in_self_and_cross_attention(request, fixture, expected):
    model = request.getfixturevalue(fixture)
    summary = attach(model, SPEC)
    assert summary.num_modules == expected
    assert {path.rpartition(".to_")[2] for path in summary.shapes} == {"q", "k", "v", "out.0"}
    assert fixture != "unet" or {"attn1", "attn2"} <= {part for path in summary.shapes for part in path.split(".")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_branches_train_and_they_are_float32(model, dtype):
    attach(model.to(dtype), SPEC)
    model.train().eval()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all(name.endswith(("lora_a", "lora_b")) and p.dtype == torch.float32 for name, p in trainable.items())


def test_the_names_of_the_bases_weights_stay_what_they_were(model):
    before = model.state_dict()
    attach(model, SPEC)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(name.endswith(("lora_a", "lora_b")) for name in after.keys() - before.keys())


def test_detach_gives_back_the_very_modules_and_the_flags(model):
    next(model.parameters()).requires_grad_(False)
    modules, flags = modules_of(model), [p.requires_grad for p in model.parameters()]
    attach(model, SPEC)
    detach(model)
    assert modules_of(model) == modules
    assert [p.requires_grad for p in model.parameters()] == flags


def test_detach_after_a_move_hands_back_the_moved_weights(transformer, forward):
    attach(transformer, SPEC)
    transformer.load_state_dict({name: value + 1 for name, value in transformer.state_dict().items()}, assign=True)
    attached = forward(transformer.double(), dtype=torch.float64)
    zero_b(transformer)
    base = forward(transformer, dtype=torch.float64)
    detach(transformer)
    assert torch.equal(forward(transformer, dtype=torch.float64), base)
    assert not torch.equal(attached, base)


def test_the_same_seed_draws_the_same_weights_and_another_seed_others(transformer):
    drawn = []
    for seed in (5, 5, 6):
        attach(transformer, SPEC, seed=seed)
        drawn.append(collect(transformer))
        detach(transformer)
    name = "transformer.transformer_blocks.1.attn1.to_out.0"
    assert torch.equal(drawn[0].pairs[name].a, drawn[1].pairs[name].a)
    assert not torch.equal(drawn[0].pairs[name].a, drawn[2].pairs[name].a)


def test_the_global_random_state_is_left_alone(transformer):
    before = torch.random.get_rng_state()
    attach(transformer, SPEC)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_kaiming_stays_within_its_bound_and_gaussian_has_its_deviation(transformer):
    attach(transformer, LoraSpec(rank=32, alpha=32))
    kaiming = torch.cat([pair.a.flatten() for pair in collect(transformer).pairs.values()])
    detach(transformer)
    attach(transformer, LoraSpec(rank=32, alpha=32, init="gaussian"))
    gaussian = torch.cat([pair.a.flatten() for pair in collect(transformer).pairs.values()])
    bound = 32**-0.5  # 1 / sqrt(in_features)
    assert 0.99 * bound < kaiming.abs().max() <= bound
    assert gaussian.std().item() == pytest.approx(1 / 32, rel=0.05)  # 8,192 draws: 0.8 % is one standard error


def test_a_bfloat16_base_does_not_round_a(transformer):
    """PEFT creates A in the base's dtype first, so that its float32 master starts out rounded."""
    attach(transformer.bfloat16(), SPEC)
    a = next(iter(collect(transformer).pairs.values())).a
    assert not torch.equal(a, a.bfloat16().float())


def test_single_modules_may_have_their_own_rank_and_alpha(transformer):
    attach(transformer, LoraSpec(rank=4, alpha=2, rank_pattern={"to_q": 8}, alpha_pattern={r"1\.attn1\.to_q": 16}))
    pairs = collect(transformer).pairs
    strength = {name.removeprefix("transformer.transformer_blocks."): (p.rank, p.scale) for name, p in pairs.items()}
    assert strength["0.attn1.to_q"] == (8, 0.25)
    assert strength["1.attn1.to_q"] == (8, 2.0)
    assert strength["1.attn1.to_k"] == (4, 0.5)


def test_a_regular_expression_means_whole_paths(transformer):
    summary = attach(transformer, LoraSpec(rank=4, target_modules=r"transformer_blocks\.0\..*to_[qk]"))
    assert list(summary.shapes) == ["transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_k"]


def test_a_peft_config_is_as_good_as_a_spec(model):
    summary = attach(model, peft.LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "to_out.0"]))
    assert (summary.spec.rank, summary.scale, summary.spec.target_modules) == (4, 0.5, ("to_out.0", "to_q"))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("to_q", "to_out"), r"2 targets are no Linear: transformer_blocks\.0\.attn1\.to_out \(ModuleList\)"),
        (("to_q", "to_vv"), r"'to_vv': did you mean 'to_v'"),
        (("to_q", "attn1.to_z"), r"'attn1\.to_z': did you mean 'attn1\.to_"),
        ("all-linear", r"'all-linear'"),
    ],
)
def test_an_unknown_target_is_an_error_that_names_the_nearest(transformer, targets, message):
    modules = modules_of(transformer)
    with pytest.raises(MismatchError, match=message):
        attach(transformer, LoraSpec(rank=4, target_modules=targets))
    assert modules_of(transformer) == modules
    assert all(p.requires_grad for p in transformer.parameters())


def test_all_wrong_targets_are_listed_at_once(transformer):
    with pytest.raises(MismatchError) as caught:
        attach(transformer, LoraSpec(rank=4, target_modules=("to_qq", "to_kk", "norm1")))
    assert all(name in str(caught.value) for name in ("to_qq", "to_kk", "norm1 (CogVideoXLayerNormZero)"))


def test_attaching_twice_is_an_error_and_changes_nothing(transformer):
    attach(transformer, SPEC)
    modules = modules_of(transformer)
    with pytest.raises(MismatchError, match="8 branches already"):
        attach(transformer, SPEC)
    assert modules_of(transformer) == modules


def test_a_model_that_peft_has_wrapped_is_refused(transformer):
    transformer.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q"]))
    with pytest.raises(MismatchError, match=r"2 targets are no Linear: transformer_blocks\.0\.attn1\.to_q"):
        attach(transformer, SPEC)


def test_a_failure_half_way_leaves_the_model_as_it_was(transformer):
    class Refusing(type(transformer.transformer_blocks[1].attn1)):
        def __setattr__(self, name, value):
            if name == "to_v":
                raise RuntimeError("this place refuses")
            super().__setattr__(name, value)

    transformer.transformer_blocks[1].attn1.__class__ = Refusing
    modules = modules_of(transformer)
    with pytest.raises(RuntimeError, match="this place refuses"):
        attach(transformer, SPEC)
    assert modules_of(transformer) == modules
    assert all(p.requires_grad for p in transformer.parameters())
    with pytest.raises(MismatchError, match="Nothing is attached"):
        collect(transformer)


@pytest.mark.parametrize("act", [detach, collect])
def test_what_is_not_attached_cannot_be_collected_or_detached(transformer, act):
    with pytest.raises(MismatchError, match="Nothing is attached"):
        act(transformer)


def test_only_models_with_a_role_take_adapters():
    with pytest.raises(ConfigError, match="Sequential"):
        attach(nn.Sequential(nn.Linear(4, 4)), SPEC)
    with pytest.raises(ConfigError, match=r"pipe\.transformer"):
        attach("transformer", SPEC)  # pyright: ignore[reportArgumentType]


def test_the_role_comes_from_the_class(transformer, unet):
    assert (role_of(transformer), role_of(unet)) == ("transformer", "unet")


def test_a_copied_model_trains_apart_from_its_original(transformer, forward):
    attach(transformer, SPEC)
    twin = copy.deepcopy(transformer)
    before = forward(transformer)
    fill_b(twin)
    assert torch.equal(forward(transformer), before)
    assert not torch.equal(forward(twin), before)
    detach(twin)
    assert torch.equal(forward(twin), before)


def test_what_is_collected_can_be_loaded_and_is_a_copy(transformer, forward):
    attach(transformer, SPEC)
    fill_b(transformer)
    adapter, expected = collect(transformer, provenance={"trigger": "star"}), forward(transformer)
    detach(transformer)
    attach(transformer, SPEC, seed=9)
    assert not torch.equal(forward(transformer), expected)
    load_into(transformer, adapter)
    assert torch.equal(forward(transformer), expected)
    assert adapter.provenance == {"trigger": "star"}
    zero_b(transformer)
    assert adapter.pairs["transformer.transformer_blocks.0.attn1.to_q"].b.abs().sum() > 0


def changed(adapter, name, **pair):
    old = adapter.pairs[name]
    new = Pair(pair.get("a", old.a), pair.get("b", old.b), pair.get("scale", old.scale))
    return Adapter(pairs={**adapter.pairs, name: new}, spec=None, layout="memory", scale_source="a test")


def test_only_an_adapter_that_fits_the_branches_is_loaded(transformer, forward):
    attach(transformer, SPEC)
    fill_b(transformer)
    adapter, expected = collect(transformer), forward(transformer)
    name = "transformer.transformer_blocks.1.attn1.to_v"
    less = Adapter(pairs={name: adapter.pairs[name]}, spec=None, layout="memory", scale_source="a test")
    more = changed(adapter, "transformer.transformer_blocks.0.attn1.to_q", a=torch.ones(2, 32), b=torch.ones(32, 2))
    for wrong, message in [
        (less, "7 branches have no pair"),
        (more, "rank 2, attached is rank 4"),
        (changed(adapter, name, scale=1.0), r"trained at scale 1\.0, attached is 0\.5"),
    ]:
        with pytest.raises(MismatchError, match=message):
            load_into(transformer, wrong)
    with pytest.raises(UnknownScaleError):
        load_into(transformer, changed(adapter, name, scale=None))
    assert torch.equal(forward(transformer), expected)
