"""Files as they are in the wild: read at the strength that they were trained with, or refused with the reason."""

import json

import pytest
import torch
from corpus import CASES, NAME, PATH, RANK, SAT_MODULE, WIDTH, factors
from safetensors.torch import save_file

from reelora.adapters import read_adapter, write_adapter
from reelora.errors import AdapterError, UnknownScaleError
from reelora.layouts import LAYOUTS


def same(actual, expected):
    """Products of float32 numbers of order 1, summed in another order."""
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_is_read_at_the_strength_that_its_producer_means(case, tmp_path):
    adapter = read_adapter(case.make(tmp_path))
    assert adapter.layout == case.layout
    assert adapter.pairs[case.module].scale == pytest.approx(case.scale) if case.scale else adapter.spec is None
    a, b = factors()
    if case.scale is None:
        assert adapter.scale_source.startswith("unknown")
        with pytest.raises(UnknownScaleError, match="alpha="):
            adapter.delta(case.module)
        (tmp_path / "again").mkdir()
        adapter = read_adapter(case.make(tmp_path / "again"), alpha=2)
    expected = case.delta() if case.delta else (case.scale or 2 / RANK) * b @ a
    same(adapter.delta(case.module), expected)


def test_every_layout_has_a_file_in_the_corpus():
    assert {case.layout for case in CASES} == {layout.name for layout in LAYOUTS}


def test_a_missing_alpha_is_never_taken_for_another_formats_rule(tmp_path):
    silent = [case for case in CASES if case.scale is None]
    assert {case.name for case in silent} >= {"diffusers, silent", "CogKit", "SAT", "VideoX-Fun, for ComfyUI", "PEFT, slot"}


def save(path, tensors, metadata=None):
    save_file(tensors, path, metadata={key: json.dumps(value) for key, value in (metadata or {}).items()})
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "adapter.safetensors"


def pair(prefix=f"{NAME}.", down="lora_A.weight", up="lora_B.weight"):
    a, b = factors()
    return {f"{prefix}{down}": a, f"{prefix}{up}": b}


@pytest.mark.parametrize(
    ("extra", "metadata", "sources"),
    [
        (
            {"alpha": 4.0},
            {"lora_adapter_metadata": {"transformer.r": 4, "transformer.lora_alpha": 2}},
            "alpha tensors.*metadata",
        ),
        ({"alpha": 4.0}, {"lora_config": {"r": 4, "lora_alpha": 2}}, "alpha tensors.*lora_config"),
        ({"alpha": 4.0}, {"ss_network_alpha": 2, "ss_network_dim": 4}, "alpha tensors.*ss_network_alpha"),
        ({}, {"lora_config": {"r": 4, "lora_alpha": 2}, "network_alpha": 3}, "lora_config.*network_alpha"),
        (
            {},
            {"lora_adapter_metadata": {"r": 4, "lora_alpha": 2}, "lora_config": {"r": 4, "lora_alpha": 1}},
            "lora_adapter_metadata.*lora_config",
        ),
    ],
)
def test_two_sources_that_disagree_are_an_error_until_alpha_is_given(path, extra, metadata, sources):
    tensors = pair() | {f"{NAME}.{name}": torch.tensor(value) for name, value in extra.items()}
    with pytest.raises(AdapterError, match=rf"(?s){sources} disagree about the scale of 1 pairs.*alpha="):
        read_adapter(save(path, tensors, metadata))
    assert read_adapter(path, alpha=1).pairs[NAME].scale == 0.25


def test_sources_that_agree_are_all_named(path):
    metadata = {"lora_config": {"r": 4, "lora_alpha": 2}, "ss_network_alpha": 2, "ss_network_dim": 4}
    adapter = read_adapter(save(path, pair() | {f"{NAME}.alpha": torch.tensor(2.0)}, metadata))
    assert adapter.pairs[NAME].scale == 0.5
    assert all(source in adapter.scale_source for source in ("alpha tensors", "lora_config", "ss_network_alpha"))


def test_a_file_that_knows_only_some_of_its_alphas_is_unknown_where_the_format_has_no_rule(path):
    other = NAME.replace("to_out.0", "to_q")
    adapter = read_adapter(save(path, pair() | pair(f"{other}.") | {f"{NAME}.alpha": torch.tensor(2.0)}))
    assert (adapter.pairs[NAME].scale, adapter.pairs[other].scale, adapter.spec) == (0.5, None, None)
    with pytest.raises(UnknownScaleError, match="1 of 2 pairs"):
        adapter.check_scale()


def test_ss_network_alpha_is_not_believed_where_the_ranks_are_others(path):
    flat = f"lora_unet_{PATH.replace('.', '_')}."
    tensors = pair(flat, "lora_down.weight", "lora_up.weight")
    adapter = read_adapter(save(path, tensors, {"ss_network_alpha": 64, "ss_network_dim": 128}))
    assert adapter.pairs[NAME].scale == 1.0
    assert "alpha = rank" in adapter.scale_source


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), -1.0])
def test_an_alpha_that_cannot_be_is_refused(path, alpha):
    with pytest.raises(AdapterError, match="store an alpha or rank that cannot be"):
        read_adapter(save(path, pair() | {f"{NAME}.alpha": torch.tensor(alpha)}), alpha=1)


def test_a_rank_tensor_that_contradicts_the_shapes_is_refused(path):
    tensors = pair(f"{PATH}.") | {f"{PATH}.lora_rank": torch.tensor([8]), f"{PATH}.lora_alpha": torch.tensor([2.0])}
    with pytest.raises(AdapterError, match="rank 8 by its tensor, 4 by its shape"):
        read_adapter(save(path, tensors))


def test_a_convolution_is_a_matrix_with_a_kernel(path):
    down, up = torch.randn(2, 3, 3, 3), torch.randn(5, 2, 1, 1)
    tensors = {"lora_unet_conv_in.lora_down.weight": down, "lora_unet_conv_in.lora_up.weight": up}
    adapter = read_adapter(save(path, tensors))
    pair = adapter.pairs["unet.conv_in"]
    assert (pair.kernel, pair.shape) == ((3, 3), (5, 27))
    dense = torch.einsum("orxy,rikl->oikl", up, down)
    same(adapter.delta("unet.conv_in").reshape(5, 3, 3, 3), dense)


def test_a_tucker_convolution_is_multiplied_out_exactly(path):
    down, mid, up = torch.randn(2, 3, 1, 1), torch.randn(2, 2, 3, 3), torch.randn(5, 2, 1, 1)
    names = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}
    adapter = read_adapter(save(path, {f"lora_unet_conv_in.{name}": tensor for name, tensor in names.items()}))
    dense = torch.einsum("op,pqkl,qi->oikl", up[..., 0, 0], mid, down[..., 0, 0])
    same(adapter.delta("unet.conv_in").reshape(5, 3, 3, 3), dense)


def test_lycoris_products_are_exact_with_tucker_cores_and_whole_factors_too(path):
    """The reference is LyCORIS' own formulas, functional/loha.py and functional/lokr.py."""
    torch.manual_seed(0)
    t1, t2 = torch.randn(2, 2, 3, 3), torch.randn(2, 2, 3, 3)
    w1a, w1b, w2a, w2b = torch.randn(2, 5), torch.randn(2, 4), torch.randn(2, 5), torch.randn(2, 4)
    hada = {"hada_w1_a": w1a, "hada_w1_b": w1b, "hada_w2_a": w2a, "hada_w2_b": w2b, "hada_t1": t1, "hada_t2": t2}
    adapter = read_adapter(save(path, {f"lora_unet_conv_in.{name}": tensor for name, tensor in hada.items()}))
    rebuilt = [torch.einsum("ijkl,jr,ip->prkl", t, b, a) for t, b, a in ((t1, w1b, w1a), (t2, w2b, w2a))]
    same(adapter.delta("unet.conv_in").reshape(5, 4, 3, 3), rebuilt[0] * rebuilt[1])

    whole = {"lokr_w1": torch.randn(2, 3), "lokr_w2": torch.randn(4, 2, 3, 3), "alpha": torch.tensor(7.0)}
    adapter = read_adapter(save(path, {f"lora_unet_conv_in.{name}": tensor for name, tensor in whole.items()}))
    dense = torch.kron(whole["lokr_w1"][..., None, None], whole["lokr_w2"])
    same(adapter.delta("unet.conv_in").reshape(8, 6, 3, 3), dense)
    assert adapter.pairs["unet.conv_in"].scale == 1.0  # both factors whole: alpha has no meaning

    core = {"lokr_w1_a": torch.randn(2, 1), "lokr_w1_b": torch.randn(1, 3), "lokr_t2": torch.randn(2, 2, 3, 3)}
    core |= {"lokr_w2_a": torch.randn(2, 4), "lokr_w2_b": torch.randn(2, 2), "alpha": torch.tensor(1.0)}
    adapter = read_adapter(save(path, {f"lora_unet_conv_in.{name}": tensor for name, tensor in core.items()}))
    second = torch.einsum("ijkl,jr,ip->prkl", core["lokr_t2"], core["lokr_w2_b"], core["lokr_w2_a"])
    dense = torch.kron((core["lokr_w1_a"] @ core["lokr_w1_b"])[..., None, None], second.contiguous()) / 2
    same(adapter.delta("unet.conv_in").reshape(8, 6, 3, 3), dense)


def test_a_loha_whose_product_has_full_rank_becomes_a_dense_update(path):
    torch.manual_seed(0)
    parts = {f"hada_w{n}_{side}": torch.randn((6, 3) if side == "a" else (3, 4)) for n in "12" for side in "ab"}
    adapter = read_adapter(save(path, {f"lora_unet_{PATH.replace('.', '_')}.{name}": tensor for name, tensor in parts.items()}))
    assert adapter.pairs[NAME].rank == 4
    dense = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    same(adapter.delta(NAME), dense)


@pytest.mark.parametrize(
    ("key", "norms", "kind"),
    [
        (f"{NAME}.lora_magnitude_vector", (WIDTH,), ("PEFT", "out")),
        (f"{NAME}.dora_scale", (WIDTH, 1), ("LyCORIS", "out")),
        (f"{NAME}.dora_scale", (1, WIDTH), ("LyCORIS", "in")),
    ],
)
def test_a_dora_is_kept_with_which_dora_it_is_and_never_used_as_a_plain_lora(path, tmp_path, key, norms, kind):
    norms = torch.rand(norms)
    adapter = read_adapter(save(path, pair() | {key: norms}), alpha=2)
    magnitude = adapter.pairs[NAME].magnitude
    assert magnitude
    assert (magnitude.made_by, magnitude.axis) == kind
    with pytest.raises(AdapterError, match="depends on the weights of its base"):
        adapter.delta(NAME)
    layout = "diffusers" if kind[0] == "PEFT" else "kohya"
    write_adapter(adapter, tmp_path / "again.safetensors", layout)
    again = read_adapter(tmp_path / "again.safetensors").pairs[NAME].magnitude
    assert again
    assert (again.made_by, again.axis) == kind
    assert torch.equal(again.values, magnitude.values)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{NAME}.dora_scale": torch.ones(WIDTH), **pair()}, r"dora_scale is \(32,\), neither one norm per row"),
        ({f"{NAME}.lora_magnitude_vector": torch.ones(3), **pair()}, r"lora_magnitude_vector is \(3,\)"),
        ({f"{NAME}.hada_w1_a": torch.ones(4, 2)}, "lacks hada_w1_b, hada_w2_a, hada_w2_b"),
        ({f"{NAME}.lokr_w1": torch.ones(4, 2)}, "either lokr_w2 or both"),
        ({f"{NAME}.hada_w1_a": torch.ones(4, 2), **pair()}, "parts that do not belong together"),
        ({f"{NAME}.alpha": torch.ones(())}, "parts that do not belong together"),
        ({f"{NAME}.diff": torch.ones(4, 4)}, "a full difference of weights"),
        ({f"{NAME}.alpha": torch.ones(3), **pair()}, "no single number"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(path, tensors, message):
    with pytest.raises(AdapterError, match=message):
        read_adapter(save(path, tensors), alpha=1)


def test_textual_inversion_tokens_come_along(tmp_path):
    case = next(case for case in CASES if case.name == "cloneofsimo")
    assert {token: tuple(value.shape) for token, value in read_adapter(case.make(tmp_path)).tokens.items()} == {"<s1>": (8,)}


def sat_yaml(path, params):
    layers = ("model", "network_config", "params", "modules", "lora_config", "params")
    path.write_text("\n".join(f"{'  ' * depth}{key}:" for depth, key in enumerate(layers)) + f" {params}\n")
    return path


def test_the_yaml_of_a_sat_training_tells_its_scale(tmp_path):
    folder = next(case for case in CASES if case.name == "SAT").make(tmp_path)
    silent = sat_yaml(tmp_path / "silent.yaml", "{r: 4}")
    assert read_adapter(folder, sat_config=silent).pairs[NAME].scale == 0.25
    assert "alpha 1" in read_adapter(folder, sat_config=silent).scale_source
    loud = sat_yaml(tmp_path / "loud.yaml", "{lora_alpha: 8}")
    assert read_adapter(folder, sat_config=[silent, loud]).pairs[NAME].scale == 2.0
    assert read_adapter(folder, producer="sat").pairs[NAME].scale == 0.25
    with pytest.raises(AdapterError, match="the YAML says r 128, the tensors have 4"):
        read_adapter(folder, sat_config=sat_yaml(tmp_path / "other.yaml", "{r: 128}"))
    with pytest.raises(AdapterError, match="no usable model"):
        read_adapter(folder, sat_config=sat_yaml(tmp_path / "none.yaml", "{}"))


def test_a_sharded_sat_lora_is_refused_because_its_training_was_wrong(tmp_path):
    folder = next(case for case in CASES if case.name == "SAT").make(tmp_path)
    shard = folder / "500" / "mp_rank_00_model_states.pt"
    (folder / "500" / "mp_rank_01_model_states.pt").write_bytes(shard.read_bytes())
    with pytest.raises(AdapterError, match="2 model-parallel shards"):
        read_adapter(folder)


def test_a_sat_checkpoint_without_a_lora_says_so(tmp_path):
    torch.save({"module": {f"{SAT_MODULE}.weight": torch.zeros(2, 2)}}, tmp_path / "base.pt")
    with pytest.raises(AdapterError, match="no pair at all"):
        read_adapter(tmp_path / "base.pt")
