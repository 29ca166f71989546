"""Where the parts of a model are never changes its pictures, and everything comes off again without a trace."""

import pytest
import torch
from tiny_models import build_pipeline
from torch import nn

from reelora.components import load_components
from reelora.errors import ConfigError
from reelora.generate.placement import place, unplace
from reelora.lora import Rack
from reelora.plan import Plan, parse_plan
from reelora.pocket import MODEL

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
"""torch's own compiler, at its import."""

NETWORKS = ("text_encoder", "transformer", "vae")


@pytest.fixture(scope="module")
def pocket():
    pipeline = load_components(MODEL).pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def resident(pocket):
    return paint(pocket)


@pytest.fixture
def tiny():
    pipeline = build_pipeline("5B")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


OWN = ("forward", "_hf_hook", "_old_forward", "_repeated_blocks")


def plan_of(text) -> Plan:
    plan = parse_plan(text)
    assert isinstance(plan, Plan)
    return plan


def paint(pipeline, **size):
    size = {"num_frames": 9, "height": 64, "width": 64} | size
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return pipeline("a red circle", **size, num_inference_steps=2, generator=noise, output_type="pt").frames


def step(transformer):
    """One step of a tiny transformer."""
    draw = torch.Generator().manual_seed(0)
    latents, states = (torch.randn(shape, generator=draw) for shape in ((1, 3, 4, 4, 4), (1, 8, 16)))
    positions = tuple(torch.randn(12, 16, generator=draw) for _ in range(2))
    with torch.no_grad():
        return transformer(latents, states, torch.tensor([500]), image_rotary_emb=positions, return_dict=False)[0]


def traces(pipeline):
    """All that anybody has hung on the modules, and where the weights are."""
    found = []
    for role in NETWORKS:
        network = getattr(pipeline, role)
        for name, module in network.named_modules():
            own = {key for key in OWN if key in vars(module)}
            registry = vars(module).get("_diffusers_hook")  # a pipeline leaves an empty one on its transformer
            hooks = sorted(registry.hooks) if registry else []
            found.append((role, name, own, hooks, module._compiled_call_impl, type(getattr(module, "processor", None))))
        found += [(name, parameter.data_ptr(), parameter.dtype) for name, parameter in network.named_parameters()]
        found += [(key, value) for key, value in vars(network).items() if key.startswith("use_")]
    return found


@pytest.mark.parametrize("text", ["resident", "model", "group", "resident,slices", "group,slices"])
def test_placement_never_changes_numbers(pocket, resident, text):
    place(pocket, plan_of(text), CPU)
    try:
        assert torch.equal(paint(pocket), resident)
    finally:
        unplace(pocket)


@pytest.mark.parametrize(
    "text", ["resident", "model", "group", "tiles,slices", "fp8", "group,fp8", "compile", "attention=native"]
)
def test_afterwards_nothing_is_left(pocket, resident, text):
    before = traces(pocket)
    place(pocket, plan_of(text), CPU)
    unplace(pocket)
    assert traces(pocket) == before
    unplace(pocket)
    assert traces(pocket) == before


@pytest.mark.parametrize("text", ["group", "fp8"])
def test_afterwards_pictures_are_as_before_though_it_has_run(pocket, resident, text):
    before = traces(pocket)
    place(pocket, plan_of(text), CPU)
    paint(pocket)
    unplace(pocket)
    assert traces(pocket) == before
    assert torch.equal(paint(pocket), resident)


def test_group_offload_really_hangs_hooks_and_a_second_time_changes_nothing(pocket):
    place(pocket, Plan(placement="group"), CPU)
    hung = traces(pocket)
    assert "group_offloading" in pocket.transformer.transformer_blocks[0]._diffusers_hook.hooks
    place(pocket, Plan(placement="group"), CPU)
    assert traces(pocket) == hung
    unplace(pocket)


def test_another_plan_takes_the_place_of_the_one_before(pocket, resident):
    before = traces(pocket)
    place(pocket, plan_of("group,fp8"), CPU)
    place(pocket, plan_of("resident"), CPU)
    assert traces(pocket) == before
    assert torch.equal(paint(pocket), resident)
    unplace(pocket)


def test_fp8_stores_the_large_layers_in_one_byte_and_changes_the_picture_a_little(pocket, resident):
    place(pocket, plan_of("fp8"), CPU)
    try:
        block = pocket.transformer.transformer_blocks[0]
        assert block.ff.net[2].weight.dtype is torch.float8_e4m3fn
        assert block.norm1.linear.weight.dtype is torch.bfloat16
        painted = paint(pocket)
    finally:
        unplace(pocket)
    assert not torch.equal(painted, resident)
    assert (painted - resident).abs().mean() < 0.1


def test_tiles_are_on_only_while_the_plan_says_so(pocket, resident):
    place(pocket, plan_of("tiles"), CPU)
    assert pocket.vae.use_tiling
    assert not torch.equal(paint(pocket), resident)
    unplace(pocket)
    assert not pocket.vae.use_tiling


def test_a_bundle_can_be_placed_as_well_as_a_pipeline():
    parts = load_components(MODEL, roles=["transformer", "vae"])
    place(parts, plan_of("group,tiles"), CPU)
    assert parts.vae.use_tiling
    unplace(parts)
    assert "_diffusers_hook" not in vars(parts.transformer)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("sequential", "accelerator"),
        ("group,streams", "CUDA"),
        ("attention=falsh", "did you mean 'flash'"),
        ("attention=flash_varlen", "here"),
    ],
)
def test_what_the_machine_has_not_is_refused_and_nothing_has_changed(pocket, text, what):
    before = traces(pocket)
    with pytest.raises(ConfigError, match=what):
        place(pocket, plan_of(f"{text},fp8"), CPU)
    assert traces(pocket) == before


class Counter:
    """A compiler that counts how often it is called, and runs what it is given as it is."""

    def __init__(self):
        self.compiled = 0

    def __call__(self, graph, inputs):
        self.compiled += 1
        return graph.forward


@pytest.fixture
def counted(monkeypatch):
    counter = Counter()
    stock = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: stock(module, backend=counter))
    torch._dynamo.reset()
    yield counter
    torch._dynamo.reset()


def test_blocks_are_compiled_once_and_another_adapter_compiles_nothing(tiny, make_adapter, counted):
    """Adapters are other tensors in the same modules."""
    rack = Rack(tiny.transformer)
    for name, seed in (("one", 1), ("other", 2)):
        rack.load(name, make_adapter(seed=seed))
    expected = {}
    for name in ("one", "other"):
        rack.activate({name: 1.0})
        expected[name] = step(tiny.transformer)
    place(tiny, Plan(compile=True), CPU)
    rack.activate({"one": 1.0})
    torch.testing.assert_close(step(tiny.transformer), expected["one"], rtol=1e-4, atol=1e-5)
    first = counted.compiled
    assert first
    for name, strength in (("other", 1.0), ("one", 0.5), ("other", 0.25), ("other", 1.0)):
        rack.activate({name: strength})
        result = step(tiny.transformer)
    assert counted.compiled == first
    torch.testing.assert_close(result, expected["other"], rtol=1e-4, atol=1e-5)
    unplace(tiny)


@pytest.mark.parametrize("num_layers", [2, 5])
def test_however_many_blocks_there_are_two_are_compiled(counted, num_layers):
    """The first one's tokens come in another layout than those of all that follow; no block falls into pieces."""
    pipeline = build_pipeline("5B", num_layers=num_layers)
    expected = step(pipeline.transformer)
    place(pipeline, Plan(compile=True), CPU)
    torch.testing.assert_close(step(pipeline.transformer), expected, rtol=1e-4, atol=1e-5)
    assert counted.compiled == 2
    unplace(pipeline)
