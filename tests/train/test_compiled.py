"""Compiled blocks: the same numbers, code that is made once, and a clear word where none can be made."""

import json

import pytest
import torch
from branched import branched, forward
from einops import rearrange
from torch import nn
from torch._dynamo.backends.debugging import aot_eager, aot_eager_decomp_partition
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from reelora.components import repeated_blocks
from reelora.errors import ConfigError
from reelora.lora import FrozenLinear, Shadows, TrainableLinear
from reelora.train import LoopConfig
from reelora.train.compiled import MAKING, CompiledBlocks, check_compiler, compiled_rows
from reelora.train.recompute import Kept, Recomputing, ways_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.autograd.function.Function.* should not be instantiated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),
]
"""What torch's own tracing does; it hides them from users."""

WAYS: list[Kept] = ["everything", "products", "attention", "inputs"]
CPU = torch.device("cpu")


class Maker:
    """Makes code without a compiler of C++, and counts for how many graphs."""

    def __init__(self, make=aot_eager):
        self.make, self.count = make, 0

    def __call__(self, graph, inputs, **options):
        self.count += 1
        return self.make(graph, inputs, **options)


MAKER = Maker()


@pytest.fixture(autouse=True)
def maker(monkeypatch):
    """What makes code here. What it has made serves later tests too: only those that count begin without."""
    monkeypatch.setattr("reelora.train.compiled.MAKING", {"backend": MAKER})
    counters.clear()
    yield MAKER
    assert not counters["graph_break"]


@pytest.fixture
def made(maker):
    """How many graphs code has been made for in this test, beside the trial of the compiler."""
    torch._dynamo.reset()
    check_compiler(CPU)
    before = maker.count
    return lambda: maker.count - before


@pytest.fixture(autouse=True, scope="module")
def forgotten():
    """Leave no code behind for tests of other things."""
    yield
    torch._dynamo.reset()


def step(model, blocks=None, kept: Kept = "everything", size=8):
    """What the model says and the gradients of all branches, its blocks compiled or not."""
    ways = blocks.ways_of if blocks else ways_of
    model.enable_gradient_checkpointing(Recomputing(dict.fromkeys(repeated_blocks(model), kept), ways=ways))
    model.zero_grad()
    with Shadows(model).cast(), blocks.running() if blocks else torch.enable_grad():
        torch.manual_seed(7)  # dropout
        result = forward(model, size=size)()
        result.square().mean().backward()
    model.disable_gradient_checkpointing()
    return {"result": result.detach()} | {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def distance(actual, expected):
    """The largest relative distance of a result or gradient."""
    assert actual.keys() == expected.keys()
    return max(float((actual[name] - value).norm() / value.norm()) for name, value in expected.items())


def total_distance(actual, expected):
    """That of all gradients as one vector; single ones are noise where they are small."""
    ours, theirs = (torch.cat([values[name].float().flatten() for name in expected]) for values in (actual, expected))
    return float((ours - theirs).norm() / theirs.norm())


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(actual[name], value)] == []


def ways_that(model):
    return list(ways_of(repeated_blocks(model)[0]))


def saved_bytes(model, blocks, kept):
    """What autograd keeps of a forward pass beside weights and their copies."""
    held = {}
    with Shadows(model).cast():
        copies = [low for m in model.modules() if isinstance(m, TrainableLinear) for low in (m.shadow, m.shared_shadow) if low]
        known = [*model.parameters(), *(t for low in copies for t in (low.a, *low.bs))]
        places = {tensor.untyped_storage()._cdata for tensor in known}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in places:
                held[storage._cdata] = storage
            return tensor

        ways = blocks.ways_of if blocks else ways_of
        model.enable_gradient_checkpointing(Recomputing({}, otherwise=kept, ways=ways))
        with blocks.running() if blocks else torch.enable_grad():
            forward(model)()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                result = forward(model)()
    model.disable_gradient_checkpointing()
    assert result.grad_fn is not None
    return sum(storage.nbytes() for storage in held.values())


OTHERS = {"target_modules": ("to_out.0", "ff.net.2")}


@pytest.mark.parametrize("kind", ["1.5", "unet"])
def test_the_numbers_are_those_of_the_blocks_as_they_are(kind):
    model = branched(kind, num_layers=2)
    blocks = CompiledBlocks(model)
    expected = step(model, blocks)
    assert distance(expected, step(model)) < 1e-6
    for kept in ways_that(model):
        assert_same(step(model, blocks, kept), expected)


@pytest.mark.parametrize("spec", [{"dropout": 0.5}, OTHERS], ids=["dropout", "others"])
def test_whatever_blocks_keep_the_bits_are_the_same(spec):
    model = branched("5B", torch.bfloat16, num_layers=2, **spec)
    blocks = CompiledBlocks(model)
    expected = step(model, blocks)
    for kept in ways_that(model):
        assert_same(step(model, blocks, kept), expected)


def test_where_the_second_product_is_trained_its_input_is_not_kept():
    """It is four times as wide as the block."""
    model = branched("5B", torch.bfloat16, num_layers=2, **OTHERS)
    assert saved_bytes(model, CompiledBlocks(model), "inputs") <= saved_bytes(model, None, "inputs")


def test_code_is_made_for_the_first_block_and_for_all_others(made):
    """The inputs of the first need no gradient, and its code leaves that out. The last of two regions is alike for all."""
    model = branched("2B", num_layers=3)
    step(model, CompiledBlocks(model), "attention")
    assert made() == 3
    for kept in WAYS:
        step(model, CompiledBlocks(model), kept)
    assert made() == 3


class Counter(TorchDispatchMode):
    """How often the attention runs forwards, and the second product of feed-forward layers (of inputs of width 128)."""

    def __init__(self):
        super().__init__()
        self.attentions = self.second_products = 0

    @classmethod
    def ignore_compile_internals(cls):
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.attentions += func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        self.second_products += func is torch.ops.aten.addmm.default and args[1].shape[-1] == 128
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kept", "attentions"), [("everything", 3), ("products", 3), ("attention", 3), ("inputs", 6)])
def test_what_is_computed_again(kept, attentions):
    model = branched("2B")
    blocks = CompiledBlocks(model)
    step(model, blocks, kept)
    with Counter() as counter:
        step(model, blocks, kept)
    assert (counter.attentions, counter.second_products) == (attentions, 3)


def test_a_model_of_the_same_kind_finds_its_code_made(made):
    for num_layers in (2, 3):
        model = branched("2B", torch.bfloat16, num_layers=num_layers)
        step(model, CompiledBlocks(model), "inputs")
    assert made() == 3


def test_what_other_libraries_meet_meanwhile_makes_no_code_anew(maker):
    """einops keeps a table of types, which previews and rehearsals fill."""

    class Other(torch.Tensor):
        pass

    model = branched("2B", torch.bfloat16, num_layers=2)
    blocks = CompiledBlocks(model)
    step(model, blocks)
    before = maker.count
    rearrange(torch.ones(2).as_subclass(Other), "i -> i")
    step(model, blocks)
    assert maker.count == before


def test_each_size_has_code_of_its_own_and_keeps_it(made):
    """Code for all sizes would depend on which came first, and a run that goes on may meet another first."""
    model = branched("2B", num_layers=1)
    blocks = CompiledBlocks(model)
    counts = []
    for size in (8, 12, 16, 8, 12, 16):
        step(model, blocks, size=size)
        counts.append(made())
    assert counts == [2, 4, 6, 6, 6, 6]


def test_no_more_is_kept_than_was_planned_for(monkeypatch):
    """By torch's own choice, which the compiler follows too; a norm's result and a copy of attention's are made again."""
    monkeypatch.setattr("reelora.train.compiled.MAKING", {"backend": aot_eager_decomp_partition})
    model = branched("2B", torch.bfloat16, rank=1)
    blocks = CompiledBlocks(model)
    assert saved_bytes(model, blocks, "everything") <= saved_bytes(model, None, "everything")


CONFIGS = [
    {"gradient_accumulation": 2, "gradient_checkpointing": True},
    {"evaluate_every": 1, "gradient_checkpointing": False, "ema_decay": 0.5},
]


@pytest.mark.parametrize("changes", CONFIGS, ids=["checkpointing", "running mean"])
def test_a_run_makes_its_code_in_the_first_step_and_goes_on_exactly(run, config, changes, made, tmp_path):
    """Evaluations, other weights in their place, and a start anew do not ask for any."""
    config = config.model_copy(update={"compile": True, **changes})
    counts = []

    def listen(**options):
        return {"on_step": lambda report: counts.append(made()), **options}

    _, model, losses = run("whole", config, **listen())
    run("halves", config, **listen(should_stop=lambda: len(counts) >= 9))
    assert (tmp_path / "halves" / "checkpoints" / "step-000003").exists()
    result, resumed, resumed_losses = run("halves", config, **listen())
    assert result.resumed_from == 3
    assert counts == [counts[0]] * 12
    assert counts[0] > 0
    assert resumed_losses == losses
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_the_losses_are_those_of_a_run_without(run, config):
    _, _, plain = run("plain", config)
    _, model, compiled = run("compiled", config.model_copy(update={"compile": True}))
    assert compiled == pytest.approx(plain, rel=1e-5)  # six steps of Adam on gradients that agree to 1e-6
    assert not model.is_gradient_checkpointing


def test_a_run_keeps_to_its_choice(run, config, tmp_path):
    compiling = config.model_copy(update={"compile": True, "steps": 2})
    run("compiled", compiling)
    with pytest.raises(ConfigError, match=r"loop\.compile"):
        run("compiled", config)
    run("plain", config.model_copy(update={"steps": 2}))
    with pytest.raises(ConfigError, match=r"loop\.compile"):
        run("plain", compiling)


def test_a_run_of_before_goes_on_without():
    """What does not compile says nothing of it, as runs did that knew of no compiling."""
    assert "compile" not in json.dumps(LoopConfig().identity())
    assert LoopConfig(compile=True).identity()["compile"] is True


def test_what_is_compiled_is_said():
    model = branched("2B", num_layers=2)
    ((label, text),) = compiled_rows(model, LoopConfig(compile=True))
    assert label == "compile"
    assert "2 CogVideoXBlock" in text
    assert compiled_rows(model, LoopConfig()) == []


def test_a_model_in_which_nothing_repeats_is_refused():
    with pytest.raises(ConfigError, match=r"which blocks of a Linear repeat.*loop\.compile = false"):
        CompiledBlocks(nn.Linear(2, 2))


def test_blocks_with_hooks_are_refused_by_number():
    model = branched("2B")
    model.transformer_blocks[1].ff.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(ConfigError, match=r"1 of 3 blocks cannot be compiled \(block 1: a hook.*loop\.compile = false"):
        CompiledBlocks(model)


def test_blocks_whose_weights_are_made_for_every_use_are_refused():
    model = branched("2B")
    projection = model.transformer_blocks[2].ff.net[0].proj
    model.transformer_blocks[2].ff.net[0].proj = FrozenLinear(projection, lambda: projection.weight, device=CPU)
    with pytest.raises(ConfigError, match="block 2: its weights are made"):
        CompiledBlocks(model)


def test_a_block_that_looks_at_values_is_refused_before_the_first_step_is_made(maker):
    class Odd(nn.LayerNorm):
        def forward(self, input):  # noqa: A002
            return super().forward(input) if float(input.detach().sum()) > 0 else input

    model = branched("2B", num_layers=2)
    norm = model.transformer_blocks[0].norm1.norm
    model.transformer_blocks[0].norm1.norm = Odd(norm.normalized_shape)
    with pytest.raises(ConfigError, match=r"A block cannot be compiled: .*loop\.compile = false"):
        step(model, CompiledBlocks(model))
    counters.clear()


def test_too_many_kinds_of_blocks_are_said_and_not_run_uncompiled(monkeypatch):
    monkeypatch.setattr("reelora.train.compiled._LIMIT", 1)
    model = branched("2B", num_layers=2, rank_pattern={"blocks.1": 3})
    torch._dynamo.reset()
    with pytest.raises(ConfigError, match=r"more than 1 ways.*loop\.compile = false"):
        step(model, CompiledBlocks(model))


def test_without_a_compiler_a_run_ends_before_it_begins(run, config, monkeypatch, tmp_path):
    def broken(graph, inputs):
        raise FileNotFoundError("g++ is not there")

    monkeypatch.setattr("reelora.train.compiled.MAKING", {"backend": broken})
    with pytest.raises(ConfigError, match=r"apt install g\+\+.*g\+\+ is not there.*loop\.compile = false"):
        run("run", config.model_copy(update={"compile": True}))
    assert not (tmp_path / "run").exists()


def test_a_base_that_is_split_is_not_compiled():
    with pytest.raises(ConfigError, match="compile or shard_base"):
        LoopConfig.of({"compile": True, "shard_base": True})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_real_code_is_as_near_to_float32_as_the_blocks_as_they_are(dtype, monkeypatch):
    """Code by g++; whatever blocks keep, its bits are the same, and in bfloat16 it rounds less often than single operations."""
    monkeypatch.setattr("reelora.train.compiled.MAKING", MAKING)
    model, exact = branched("5B", dtype), branched("5B", torch.float32)
    for parameter, source in zip(exact.parameters(), model.parameters(), strict=True):
        parameter.data = source.data.float()
    expected, blocks = step(exact), CompiledBlocks(model)
    compiled = step(model, blocks)
    assert total_distance(compiled, expected) <= max(1e-6, 1.02 * total_distance(step(model), expected))
    for kept in WAYS:
        assert_same(step(model, blocks, kept), compiled)


@pytest.mark.slow
def test_a_run_of_real_code_goes_on_exactly(run, config, monkeypatch, tmp_path):
    monkeypatch.setattr("reelora.train.compiled.MAKING", MAKING)
    config = config.model_copy(update={"compile": True})
    torch._dynamo.reset()
    _, model, losses = run("whole", config)
    made, seen = counters["stats"]["unique_graphs"], []
    run("halves", config, on_step=lambda report: seen.append(report.step), should_stop=lambda: len(seen) == 2)
    assert counters["stats"]["unique_graphs"] == made  # nothing in a second run of the same process
    torch._dynamo.reset()
    counters.clear()
    _, resumed, resumed_losses = run("halves", config.model_copy(update={"gradient_checkpointing": True}))
    assert counters["stats"]["unique_graphs"] == made == 4  # of them one is the trial of the compiler
    assert resumed_losses == losses
    assert_same(dict(resumed.named_parameters()), dict(model.named_parameters()))


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_told_what_to_install(monkeypatch):
    from torch._inductor import config as inductor

    monkeypatch.setattr("reelora.train.compiled.MAKING", MAKING)
    torch._dynamo.reset()
    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ConfigError, match=r"apt install g\+\+.*loop\.compile = false"),
    ):
        check_compiler(CPU)
