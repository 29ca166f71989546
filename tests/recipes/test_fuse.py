"""A fused model is its base with adapters in some weights: everything else is the same byte by byte, and it loads anywhere."""

import json
import math
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from disk import files_of_at_most
from safetensors.torch import load_file, save_file
from tiny_models import build_clip, build_pipeline, build_transformer, build_unet
from updates import adapter_of, dense, random_pair

from reelora.adapters import Adapter, Magnitude, Pair, content_hash, write_adapter
from reelora.errors import AdapterError, ComponentError, ConfigError, FileFormatError, MismatchError, UnknownScaleError
from reelora.lora import Rack, fuse_into
from reelora.recipes import Silent, fuse
from reelora.recipes.fuse.check import check_files
from reelora.recipes.fuse.plan import plan_fuse
from reelora.recipes.fuse.write import write_files
from reelora.tensorio import open_tensors, same_bytes

WIDTH = 32
PATHS = [f"transformer_blocks.{block}.attn1.{leaf}" for block in (0, 1) for leaf in ("to_q", "to_out.0")]
SHARDED = "30KB"


def adapter(seed=0, *, scale: float | None = 0.5, dtype=torch.float32, paths=PATHS) -> Adapter:
    pairs = {
        f"transformer.{path}": random_pair(10 * seed + place, out=WIDTH, inp=WIDTH, scale=scale, dtype=dtype)
        for place, path in enumerate(paths)
    }
    return adapter_of({name: Pair(pair.a * 0.1, pair.b * 0.1, pair.scale) for name, pair in pairs.items()})


def save_transformer(folder: Path, *, dtype=torch.float32, shards: str = "10GB") -> Path:
    torch.manual_seed(0)
    build_transformer("2B", sample_width=8, sample_height=8).to(dtype).save_pretrained(folder, max_shard_size=shards)
    return folder


@pytest.fixture
def base(tmp_path) -> Path:
    return save_transformer(tmp_path / "base")


@pytest.fixture
def pipeline(tmp_path) -> Path:
    build_pipeline("2B").save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def run(base: Path, adapters: dict[str, tuple[Adapter, float]], output: Path, **settings: Any):
    return fuse(str(base), adapters, output, listener=settings.pop("listener", Silent()), **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def provenance(file: Path) -> dict[str, Any]:
    return json.loads(open_tensors(file).metadata["reelora_fused"])


class Heard(Silent):
    """A listener that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


# ---- what is written


@pytest.mark.parametrize("shards", ["10GB", SHARDED], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_only_the_weights_of_the_adapters_differ_from_the_base(tmp_path, dtype, shards):
    base = save_transformer(tmp_path / "base", dtype=dtype, shards=shards)
    one, other = adapter(0), adapter(1, dtype=torch.bfloat16, paths=PATHS[1:])
    outcome = run(base, {"one": (one, 0.8), "other": (other, -0.4)}, tmp_path / "out", check=True)
    before, after = open_tensors(base), open_tensors(tmp_path / "out")
    assert list(before) == list(after)
    uses = {
        f"{path}.weight": [
            (a.pairs[f"transformer.{path}"], s) for a, s in ((one, 0.8), (other, -0.4)) if f"transformer.{path}" in a.pairs
        ]
        for path in PATHS
    }
    for name in before:
        assert same_bytes(after[name], fuse_into(before[name], uses.get(name, [])))
    assert set(outcome.lost) == {f"transformer.{name}" for name in uses}
    names = set(contents(base)) - {path.name for path in before.files.values()}
    assert {name: contents(base)[name] for name in names} == {name: contents(tmp_path / "out")[name] for name in names}
    assert set(contents(base)) == set(contents(tmp_path / "out"))


def test_a_shard_without_a_fused_weight_is_the_same_file(tmp_path):
    base = save_transformer(tmp_path / "base", shards=SHARDED)
    run(base, {"a": (adapter(paths=PATHS[:1]), 1.0)}, tmp_path / "out")
    touched = open_tensors(base).files[f"{PATHS[0]}.weight"].name
    before, after = contents(base), contents(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} == {touched}


def test_strength_zero_copies_the_base(base, tmp_path):
    heard = Heard()
    run(base, {"a": (adapter(), 0.0)}, tmp_path / "out", listener=heard, check=True)
    assert contents(base) == contents(tmp_path / "out")
    assert any("No adapter acts" in line for line in heard.lines)


def test_bytes_of_the_base_are_never_changed(base, tmp_path):
    before = contents(base)
    run(base, {"a": (adapter(), 1.0)}, tmp_path / "out", link=True, check=True)
    assert contents(base) == before


def test_a_file_of_weights_becomes_a_file(base, tmp_path):
    file = base / "diffusion_pytorch_model.safetensors"
    run(base, {"a": (adapter(), 0.7)}, tmp_path / "folder")
    outcome = run(file, {"a": (adapter(), 0.7)}, tmp_path / "out.safetensors", check=True)
    assert outcome.output == tmp_path / "out.safetensors"
    one, other = open_tensors(tmp_path / "out.safetensors"), open_tensors(tmp_path / "folder")
    assert all(same_bytes(one[name], other[name]) for name in other)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "folder", "out.safetensors"}


def forward(model):
    draw = torch.Generator().manual_seed(1)
    text, video = torch.randn(2, 8, 16, generator=draw), torch.randn(2, 3, 4, 8, 8, generator=draw)
    if isinstance(model, UNet2DConditionModel):
        return model(video[:, 0], torch.tensor([5, 900]), text).sample
    return model(hidden_states=video, encoder_hidden_states=text, timestep=torch.tensor([5, 900])).sample


@torch.no_grad()
def test_stock_diffusers_sees_the_base_with_its_adapter(base, tmp_path):
    path = tmp_path / "style.safetensors"
    write_adapter(adapter(), path)
    run(base, {"style": (adapter(), 0.8)}, tmp_path / "out")
    model: Any = CogVideoXTransformer3DModel.from_pretrained(base)
    plain = forward(model)
    model.load_lora_adapter(path.parent, weight_name=path.name, prefix="transformer")
    model.set_adapters("default_0", 0.8)
    fused: Any = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "out")
    expected = forward(model)
    torch.testing.assert_close(forward(fused), expected, rtol=1e-4, atol=1e-5)  # float32, in another order
    assert (expected - plain).norm() > 100 * (forward(fused) - expected).norm()


CONV, LINEAR = "down_blocks.0.resnets.0.conv1", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def unet_adapter(unet) -> Adapter:
    conv, linear = unet.get_submodule(CONV).weight, unet.get_submodule(LINEAR).weight
    pair = random_pair(0, out=conv.shape[0], inp=conv[0].numel())
    flat = random_pair(1, out=linear.shape[0], inp=linear.shape[1])
    norms = Magnitude(torch.rand(linear.shape[0]) + 0.5, "out", "PEFT")
    return adapter_of(
        {
            f"unet.{CONV}": Pair(pair.a, pair.b, 0.1, tuple(conv.shape[2:])),
            f"unet.{LINEAR}": Pair(flat.a, flat.b, 0.1, magnitude=norms),
        }
    )


@torch.no_grad()
def test_convolutions_and_doras_of_a_unet_are_fused(tmp_path):
    torch.manual_seed(0)
    unet = build_unet()
    unet.save_pretrained(tmp_path / "unet")
    found = unet_adapter(unet)
    run(tmp_path / "unet", {"a": (found, 0.6)}, tmp_path / "out", check=True)
    for name, path in ((f"unet.{CONV}", CONV), (f"unet.{LINEAR}", LINEAR)):
        weight = unet.get_submodule(path).weight
        weight.copy_(fuse_into(weight.clone(), [(found.pairs[name], 0.6)]))
    fused: Any = UNet2DConditionModel.from_pretrained(tmp_path / "out")
    assert torch.equal(forward(fused), forward(unet))


@pytest.mark.parametrize("spelling", ["text_model.", ""])
@pytest.mark.parametrize("stored", ["text_model.", ""])
def test_text_encoders_are_fused_whichever_way_their_weights_are_spelled(tmp_path, stored, spelling):
    clip = build_clip()
    name = "encoder.layers.0.self_attn.q_proj"
    tensors = {f"{stored}{key.removeprefix('text_model.')}": tensor.clone() for key, tensor in clip.state_dict().items()}
    save_file(tensors, tmp_path / "clip.safetensors")
    pair = random_pair(0, out=8, inp=8)
    found = adapter_of({f"text_encoder.{spelling}{name}": pair})
    run(tmp_path / "clip.safetensors", {"a": (found, 1.0)}, tmp_path / "out.safetensors")
    expected = tensors[f"{stored}{name}.weight"] + dense(pair).float()
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors")[f"{stored}{name}.weight"], expected)


# ---- a whole pipeline


def test_every_role_of_an_adapter_goes_to_its_folder_and_the_rest_is_copied(pipeline, tmp_path):
    shutil.copytree(pipeline / "text_encoder", pipeline / "text_encoder_2")
    name = "encoder.block.0.layer.0.SelfAttention.q"
    pairs = {f"{role}.{name}": random_pair(3, out=16, inp=16) for role in ("text_encoder", "text_encoder_2")}
    both = adapter_of({**adapter().pairs, **pairs})
    run(pipeline, {"a": (both, 0.5)}, tmp_path / "out", check=True)
    before, after = contents(pipeline), contents(tmp_path / "out")
    assert set(before) == set(after)
    changed = {name for name in before if before[name] != after[name]}
    transformer = "transformer/diffusion_pytorch_model.safetensors"
    assert changed == {transformer, "text_encoder/model.safetensors", "text_encoder_2/model.safetensors"}
    assert provenance(tmp_path / "out" / transformer)["base"].keys() == {
        "name",
        "transformer",
        "text_encoder",
        "text_encoder_2",
    }


def test_weights_that_would_stay_without_the_adapter_are_left_out_and_named(pipeline, tmp_path):
    weights = pipeline / "transformer" / "diffusion_pytorch_model.safetensors"
    stale = ["transformer/diffusion_pytorch_model.fp16.safetensors", "transformer/old/model.bin", "whole.safetensors"]
    for name in [*stale, "vae/diffusion_pytorch_model.fp16.safetensors", ".cache/x.bin"]:
        (pipeline / name).parent.mkdir(exist_ok=True)
        shutil.copy(weights, pipeline / name)
    heard = Heard()
    outcome = run(pipeline, {"a": (adapter(), 1.0)}, tmp_path / "out", listener=heard)
    assert set(outcome.left_out) == set(stale)
    assert set(contents(pipeline)) - set(contents(tmp_path / "out")) == {*stale, ".cache/x.bin"}
    assert any("3 files of other weights are left out" in line for line in heard.lines)


def test_links_share_weights_that_do_not_change_and_nothing_else(pipeline, tmp_path):
    run(pipeline, {"a": (adapter(), 1.0)}, tmp_path / "out", link=True, check=True)
    linked = {name for name in contents(pipeline) if (tmp_path / "out" / name).stat().st_ino == (pipeline / name).stat().st_ino}
    assert linked == {"text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"}


def test_a_snapshot_of_links_gives_files(base, tmp_path):
    """The hub's cache holds links to blobs."""
    (tmp_path / "snapshot").mkdir()
    for file in base.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    run(tmp_path / "snapshot", {"a": (adapter(), 1.0)}, tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert set(contents(base)) == set(contents(tmp_path / "out"))


# ---- what is stored and said


def test_the_header_says_what_was_fused_into_what_and_nothing_of_the_machine(base, tmp_path):
    path = tmp_path / "secret" / "style.safetensors"
    run(base, {str(path): (adapter().with_provenance(trigger_words="twinkle"), 0.8)}, tmp_path / "out")
    file = tmp_path / "out" / "diffusion_pytorch_model.safetensors"
    found = provenance(file)
    assert found["adapters"] == [
        {
            "file": "style.safetensors",
            "strength": 0.8,
            "content_hash": content_hash(adapter()),
            "scale_by": "a test",
            "trigger_words": "twinkle",
        }
    ]
    assert (found["rounding"], found["before"], found["base"]["name"]) == ("nearest", [], "base")
    assert open_tensors(file).metadata["format"] == "pt"
    assert "secret" not in json.dumps(found)


def test_fusing_a_fused_base_tells_its_story_and_warns_of_the_same_adapter(base, tmp_path):
    run(base, {"a": (adapter(), 0.8)}, tmp_path / "once")
    heard = Heard()
    run(tmp_path / "once", {"b": (adapter(1), 0.5), "again": (adapter(), 0.1)}, tmp_path / "twice", listener=heard)
    (before,) = provenance(tmp_path / "twice" / "diffusion_pytorch_model.safetensors")["before"]
    assert before == provenance(tmp_path / "once" / "diffusion_pytorch_model.safetensors")
    assert "The base holds again already: what is added now comes on top." in heard.lines


@pytest.mark.parametrize("text", ["no json", "[" * 100_000, '{"adapters": 3}', ""])
def test_a_base_may_claim_anything_of_itself(base, tmp_path, text):
    file = base / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file), file, metadata={"reelora_fused": text})
    run(base, {"a": (adapter(), 0.8)}, tmp_path / "out")
    assert len(provenance(tmp_path / "out" / file.name)["before"]) == 1


def test_updates_that_rounding_would_swallow_are_named(tmp_path):
    base = save_transformer(tmp_path / "base", dtype=torch.bfloat16)
    heard = Heard()
    outcome = run(base, {"a": (adapter(), 1e-3)}, tmp_path / "out", listener=heard)
    assert all(0.25 < share < 2 for share in outcome.lost.values())
    assert any("4 of 4 tensors that is over a quarter" in line and PATHS[0] in line for line in heard.lines)


def test_stochastic_rounding_is_a_function_of_the_seed(tmp_path):
    base = save_transformer(tmp_path / "base", dtype=torch.bfloat16)
    outputs = [tmp_path / name for name in ("one", "other", "third")]
    for output, seed in zip(outputs, (0, 0, 1), strict=True):
        run(base, {"a": (adapter(), 1e-3)}, output, rounding="stochastic", seed=seed, check=True)
    first, second, third = map(contents, outputs)
    assert first == second != third
    assert provenance(outputs[2] / "diffusion_pytorch_model.safetensors")["rounding"] == "stochastic, seed 1"


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_rack_fuses_to_the_very_bits_of_a_fuse_on_disk(tmp_path, rounding):
    base = save_transformer(tmp_path / "base", dtype=torch.bfloat16)
    run(base, {"a": (adapter(), 0.7)}, tmp_path / "out", rounding=rounding, seed=5)
    model: Any = CogVideoXTransformer3DModel.from_pretrained(base, torch_dtype=torch.bfloat16)
    rack = Rack(model, rounding=rounding, seed=5)
    rack.load("a", adapter())
    rack.activate({"a": 0.7})
    rack.fuse()
    written = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(model.get_parameter(f"{path}.weight"), written[f"{path}.weight"]) for path in PATHS)


def test_the_outcome_is_plain_values(base, tmp_path):
    outcome = run(base, {"a": (adapter(), 1.0)}, tmp_path / "out", check=True)
    told = json.loads(json.dumps(outcome.as_json()))
    assert (told["fused"], told["checked"]["fused"], told["checked"]["misrounded"]) == (4, 4, None)
    assert told["checked"]["untouched"] == told["tensors"] - 4


# ---- the check


@pytest.mark.parametrize("name", [f"{PATHS[0]}.weight", "proj_out.weight"])
def test_the_check_finds_one_changed_bit(base, tmp_path, name):
    plan, _ = plan_fuse(str(base), {"a": (adapter(), 1.0)}, tmp_path / "out")
    written = tmp_path / "written"
    write_files(plan, written, lambda: None)
    assert check_files(plan, written, lambda: None).fused == 4
    file = written / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors[name].view(torch.int32)[0, 0] ^= 1
    save_file(tensors, file, metadata=open_tensors(file).metadata)
    with pytest.raises(FileFormatError, match=f"1 tensors or files.*transformer.{name}"):
        check_files(plan, written, lambda: None)


def test_the_check_finds_changed_and_lost_files(base, tmp_path):
    plan, _ = plan_fuse(str(base), {"a": (adapter(), 1.0)}, tmp_path / "out")
    written = tmp_path / "written"
    write_files(plan, written, lambda: None)
    (written / "config.json").write_text("{}")
    with pytest.raises(FileFormatError, match=r"config\.json"):
        check_files(plan, written, lambda: None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_check_tells_how_well_weights_are_rounded(tmp_path, dtype):
    base = save_transformer(tmp_path / "base", dtype=dtype)
    checked = run(base, {"a": (adapter(dtype=dtype), 0.8)}, tmp_path / "out", check=True).checked
    assert checked is not None
    assert checked.misrounded is not None
    assert checked.misrounded < 1e-3  # of 4096 values


# ---- what is refused, with nothing written


def of(pairs: dict[str, Pair]) -> dict[str, tuple[Adapter, float]]:
    return {"a.safetensors": (adapter_of(pairs), 1.0)}


def broken(name: str = f"transformer.{PATHS[0]}", **changes: Any) -> dict[str, tuple[Adapter, float]]:
    pair = random_pair(0, **{"out": WIDTH, "inp": WIDTH, **changes})
    return of({name: pair})


REFUSED = {
    "no adapter": ({}, ConfigError, "No adapter is given"),
    "strength": ({"a": (adapter(), math.inf)}, ConfigError, r"1 strengths are no finite numbers: a \(inf\)"),
    "unknown scale": (broken(scale=None), UnknownScaleError, "Nothing says how strong"),
    "missing module": (broken("transformer.transformer_blocks.7.attn1.to_q"), MismatchError, "did you mean"),
    "strange module": (broken("transformer.zzz"), MismatchError, "1 of 1 modules are not in the base: transformer.zzz; it has"),
    "shape": (broken(out=30), MismatchError, r"1 of 1 modules have another shape: .*\(32, 32\) in the base, \(30, 32\)"),
    "norm": (broken("transformer.norm_final", out=WIDTH, inp=1), MismatchError, "have another shape"),
    "NaN": (
        of({f"transformer.{PATHS[0]}": Pair(torch.full((2, WIDTH), math.nan), torch.ones(WIDTH, 2), 1.0)}),
        AdapterError,
        "NaN",
    ),
    "two roles": (of({**adapter().pairs, "text_encoder.x": random_pair(0)}), ConfigError, "transformer and text_encoder"),
    "other role": (broken("text_encoder.x"), MismatchError, "not in the base"),
}


@pytest.mark.parametrize(("adapters", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_adapters_that_cannot_be_fused_are_refused_before_anything_is_written(base, tmp_path, adapters, error, message):
    with pytest.raises(error, match=message):
        run(base, adapters, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_everything_that_does_not_fit_is_said_at_once(base, tmp_path):
    bad = {**broken(out=30)["a.safetensors"][0].pairs, **broken("transformer.zzz")["a.safetensors"][0].pairs}
    adapters = {"one": (adapter_of(bad), 1.0), "other": (adapter_of(bad), 0.0)}
    with pytest.raises(MismatchError) as caught:
        run(base, adapters, tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines[:4]] == ["one", "one", "other", "other"]
    assert str(base) in lines[4]


def test_a_pair_of_another_kernel_is_refused(tmp_path):
    unet = build_unet()
    unet.save_pretrained(tmp_path / "unet")
    weight = unet.get_submodule(CONV).weight
    pair = random_pair(0, out=weight.shape[0], inp=weight[0].numel())
    with pytest.raises(MismatchError, match=r"another kernel: .*\(3, 3\) in the base, \(1, 9\) in the adapter"):
        run(tmp_path / "unet", of({f"unet.{CONV}": Pair(pair.a, pair.b, 1.0, (1, 9))}), tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_weights_that_are_quantised_are_refused(base, tmp_path, dtype):
    file = base / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(MismatchError, match="4 of 4 modules are stored in a dtype that cannot take an update"):
        run(base, {"a": (adapter(), 1.0)}, tmp_path / "out")


def is_there(base: Path) -> Path:
    (base.parent / "out").mkdir()
    (base.parent / "out" / "mine").write_text("mine")
    return base.parent / "out"


def dangling(base: Path) -> Path:
    (base.parent / "out").symlink_to("nowhere")
    return base.parent / "out"


OUTPUTS = {
    "there": (is_there, ConfigError, "is there already"),
    "dangling link": (dangling, ConfigError, "is there already"),
    "no folder": (lambda base: base.parent / "nowhere" / "out", FileNotFoundError, "make it first"),
    "inside the base": (lambda base: base / "out", ConfigError, "lies inside the base"),
    "file for a folder": (lambda base: base.parent / "out.safetensors", ConfigError, "the base is a folder"),
    "the base itself": (lambda base: base, ConfigError, "is there already"),
}


@pytest.mark.parametrize(("place", "error", "message"), OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_that_cannot_be_are_refused_and_left_alone(base, tmp_path, place, error, message):
    output = place(base)
    before = contents(tmp_path)
    with pytest.raises(error, match=message):
        run(base, {"a": (adapter(), 1.0)}, output)
    assert contents(tmp_path) == before


def test_a_folder_for_a_file_is_refused(base, tmp_path):
    with pytest.raises(ConfigError, match=r"name it FILE\.safetensors"):
        run(base / "diffusion_pytorch_model.safetensors", {"a": (adapter(), 1.0)}, tmp_path / "out")


def test_an_unknown_rounding_is_named(base, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'stochastic'"):
        run(base, {"a": (adapter(), 1.0)}, tmp_path / "out", rounding="stochastik")


def test_a_disk_without_room_is_said_before_anything_is_written(base, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 100))
    with pytest.raises(OSError, match="There is no room for the output"):
        run(base, {"a": (adapter(), 1.0)}, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def no_model(base: Path) -> None:
    shutil.rmtree(base)


def no_weights(base: Path) -> None:
    (base / "diffusion_pytorch_model.safetensors").unlink()


def truncated(base: Path) -> None:
    file = base / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def header_bomb(base: Path) -> None:
    file = base / "diffusion_pytorch_model.safetensors"
    file.write_bytes((2**62).to_bytes(8, "little") + file.read_bytes()[8:])


def shard_elsewhere(base: Path) -> None:
    index = {"weight_map": {"x": "../secret.safetensors"}}
    (base / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def broken_link(base: Path) -> None:
    (base / "README.md").symlink_to("nowhere")


def pipe(base: Path) -> None:
    os.mkfifo(base / "README.md")


def endless_folders(base: Path) -> None:
    (base / "again").symlink_to(base, target_is_directory=True)


BASES = {
    "missing": (no_model, FileNotFoundError, "hf download"),
    "no weights": (no_weights, FileNotFoundError, r"No \*\.safetensors"),
    "truncated": (truncated, FileFormatError, "problem in the safetensors header"),
    "header bomb": (header_bomb, FileFormatError, "says that its header has"),
    "shard elsewhere": (shard_elsewhere, FileFormatError, "no plain name"),
    "broken link": (broken_link, ComponentError, "broken link or no ordinary file"),
    "pipe": (pipe, ComponentError, "no ordinary file"),
    "endless folders": (endless_folders, ComponentError, "a folder that it lies in"),
}


@pytest.mark.parametrize(("spoil", "error", "message"), BASES.values(), ids=BASES)
def test_a_base_that_cannot_be_trusted_is_refused_with_nothing_written(base, tmp_path, spoil, error, message):
    spoil(base)
    with pytest.raises(error, match=message):
        run(base, {"a": (adapter(), 1.0)}, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"base"}


def test_a_pipeline_without_the_role_is_named(pipeline, tmp_path):
    with pytest.raises(ComponentError, match=r"unet: .*has no folder unet, which the adapters change; it has"):
        run(pipeline, of({"unet.conv_in": random_pair(0)}), tmp_path / "out")


# ---- failures on the way


def test_a_disk_that_fills_up_leaves_nothing_and_names_the_output(tmp_path):
    base = save_transformer(tmp_path / "base", shards=SHARDED)
    file = base / "diffusion_pytorch_model.safetensors"
    for size in (0, 2_000, 20_000):
        with files_of_at_most(size), pytest.raises(OSError, match="out/") as caught:
            run(base, {"a": (adapter(), 1.0)}, tmp_path / "out")
        assert str(caught.value.filename).startswith(str(tmp_path / "out/"))
        assert [path.name for path in tmp_path.iterdir()] == ["base"]
    assert not file.exists()


class Stopping(Silent):
    """Presses Ctrl-C at the n-th report."""

    def __init__(self, at: int) -> None:
        self.left = at

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [1, 2, 4, 7, 9])
def test_ctrl_c_leaves_nothing(base, tmp_path, at):
    with pytest.raises(KeyboardInterrupt):
        run(base, {"a": (adapter(), 1.0)}, tmp_path / "out", check=True, listener=Stopping(at))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize(("value", "strength"), [(math.nan, 1.0), (math.inf, 1.0), (0.0, 1e9)])
def test_a_sum_that_is_no_number_leaves_nothing(tmp_path, value, strength):
    base = save_transformer(tmp_path / "base", dtype=torch.float16)
    file = base / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors[f"{PATHS[2]}.weight"][3, 4] = value
    save_file(tensors, file)
    message = r"transformer_blocks\.\d\.attn1.*would hold NaN or infinite values.*too much for float16"
    with pytest.raises(AdapterError, match=message):
        run(base, {"a": (adapter(), strength)}, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
