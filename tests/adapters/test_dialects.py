"""Files as they are in the wild: read at the strength that they were trained with, or refused with the reason."""

import json

import pytest
import torch
from corpus import CASES, NAME, PATH, RANK, SAT_MODULE, WIDTH, factors
from peft import LoHaConfig, LoKrConfig, get_peft_model
from psutil import Process
from safetensors.torch import save_file
from tiny_models import build_transformer

from reelora.adapters import merge, read_adapter, report_modules, write_adapter, write_with_report
from reelora.errors import AdapterError, ConfigError, FileFormatError, UnknownScaleError
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


FLAT = f"lora_unet_{PATH.replace('.', '_')}."
DOWN_UP = ("lora_down.weight", "lora_up.weight")
OTHER = NAME.replace("to_out.0", "to_q")


def kohya(other_rank=None, **alphas):
    """One module of rank 4, another one of any rank, and alpha tensors by leaf."""
    tensors = pair(FLAT, *DOWN_UP)
    if other_rank:
        flat = FLAT.replace("to_out_0", "to_q")
        tensors |= {f"{flat}{DOWN_UP[0]}": torch.ones(other_rank, WIDTH), f"{flat}{DOWN_UP[1]}": torch.ones(WIDTH, other_rank)}
    return tensors | {f"{FLAT.replace('to_out_0', leaf)}alpha": value for leaf, value in alphas.items()}


@pytest.mark.parametrize("alpha", [None, 1])
@pytest.mark.parametrize("header", [{"ss_network_alpha": 64, "ss_network_dim": 128}, {"ss_network_dim": 128}])
def test_ranks_that_differ_from_kohyas_header_are_an_error_whatever_the_alpha(path, header, alpha):
    with pytest.raises(AdapterError, match=r"another rank than the file's ss_network_dim says: .* \(4, not 128\)"):
        read_adapter(save(path, kohya(), header), alpha=alpha)


def test_ss_network_alpha_is_believed_where_there_is_but_one_rank(path):
    adapter = read_adapter(save(path, kohya(), {"ss_network_alpha": 1}))
    assert (adapter.pairs[NAME].scale, adapter.scale_source) == (0.25, "the file's ss_network_alpha")


@pytest.mark.parametrize(
    "header",
    [
        {"ss_network_alpha": 1},
        {"ss_network_alpha": 1, "ss_network_dim": 4, "ss_network_args": {"conv_dim": 8, "conv_alpha": 2}},
        {"ss_network_alpha": 1, "ss_network_dim": 4, "ss_network_args": {"block_dims": "2,8,8"}},
    ],
)
def test_an_alpha_that_may_not_be_that_of_every_module_is_asked_for(path, header):
    tensors = kohya(other_rank=8)
    with pytest.raises(AdapterError, match=r"2 pairs have no alpha tensor, .*ss_network_alpha \(1\) .*rank 4.*rank 8.*alpha="):
        read_adapter(save(path, tensors, header))
    assert read_adapter(path, alpha=2).pairs[OTHER].scale == 0.25


def test_a_convolution_of_kohyas_may_have_a_rank_and_an_alpha_of_its_own(path):
    tensors = kohya(8, to_out_0=torch.tensor(1.0), to_q=torch.tensor(2.0))
    header = {"ss_network_alpha": 1, "ss_network_dim": 4, "ss_network_args": {"conv_dim": 8, "conv_alpha": 2}}
    adapter = read_adapter(save(path, tensors, header))
    assert (adapter.pairs[NAME].scale, adapter.pairs[OTHER].scale) == (0.25, 0.25)
    assert adapter.scale_source == "the file's alpha tensors"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float32])
def test_an_alpha_tensor_and_the_header_agree_within_the_rounding_of_the_tensor(path, dtype):
    stored = torch.tensor(1.2).to(dtype)
    header = {"ss_network_alpha": 1.2, "ss_network_dim": 4}
    adapter = read_adapter(save(path, kohya(to_out_0=stored), header))
    assert adapter.pairs[NAME].scale == float(stored.float()) / 4
    off = (1.2 * (1 + 2 * torch.finfo(dtype).eps)) if dtype != torch.float32 else 1.2001
    with pytest.raises(AdapterError, match="disagree about the scale"):
        read_adapter(save(path, kohya(to_out_0=stored), header | {"ss_network_alpha": off}))


def test_the_rank_that_cloneofsimo_stores_has_to_be_that_of_the_tensors(path):
    a, b = factors()
    tensors, metadata = {"unet:3:down": a, "unet:3:up": b}, {"unet": '["CrossAttention", "Attention", "GEGLU"]'}
    for rank, message in (
        ("8", r"another rank than the header's :rank entries says: .* \(4, not 8\)"),
        ("x", "no numbers: .*'x'"),
    ):
        save_file(tensors, path, metadata=metadata | {"unet:3:rank": rank})
        with pytest.raises(AdapterError, match=message):
            read_adapter(path)


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


def test_nothing_is_multiplied_out_before_it_is_used_and_the_kind_is_told(path):
    """w1 and w2 of 120 x 120 are 115 kB; the update has 207 million numbers."""
    save(path, {f"{FLAT}{name}": torch.ones(120, 120) for name in ("lokr_w1", "lokr_w2")})
    before = Process().memory_info().rss
    adapter = read_adapter(path)
    held = adapter.pairs[NAME]
    assert (held.kind, held.shape, held.rank, held.dtype) == ("LoKr", (14_400, 14_400), 14_400, torch.float32)
    assert (adapter.ranks, adapter.num_parameters) == ((14_400,), 2 * 14_400**2)
    assert Process().memory_info().rss - before < 20e6


@pytest.mark.parametrize(
    ("case", "kind"), [("LoHa", "LoHa"), ("LoKr", "LoKr"), ("PEFT, LoHa", "LoHa"), ("PEFT, LoKr", "LoKr"), ("kohya", "LoRA")]
)
def test_a_pair_says_how_it_was_stored(case, kind, tmp_path):
    adapter = read_adapter(next(entry for entry in CASES if entry.name == case).make(tmp_path))
    assert adapter.pairs[NAME].kind == kind


@pytest.mark.parametrize("config", [LoHaConfig(r=2, alpha=3), LoKrConfig(r=2, alpha=3), LoKrConfig(r=8, alpha=3)])
def test_pefts_own_loha_and_lokr_are_what_peft_computes(config, tmp_path):
    config.target_modules = [PATH]
    config.init_weights = False
    model = get_peft_model(build_transformer(), config)
    model.save_pretrained(str(tmp_path / "peft"))
    expected = model.base_model.model.get_submodule(PATH).get_delta_weight("default")
    same(read_adapter(tmp_path / "peft").delta(NAME), expected)


def test_a_lokr_has_no_higher_rank_than_its_factors_can_have(path):
    """w1 of 4 x 4 through a rank of 50, w2 of 8 x 8 through one of 60: 32, not 3,000."""
    torch.manual_seed(0)
    parts = {"lokr_w1_a": (4, 50), "lokr_w1_b": (50, 4), "lokr_w2_a": (8, 60), "lokr_w2_b": (60, 8)}
    tensors = {name: torch.randn(shape) for name, shape in parts.items()}
    adapter = read_adapter(save(path, {f"{FLAT}{name}": tensor for name, tensor in tensors.items()}))
    assert adapter.pairs[NAME].rank == 32
    dense = torch.kron(tensors["lokr_w1_a"] @ tensors["lokr_w1_b"], tensors["lokr_w2_a"] @ tensors["lokr_w2_b"])
    torch.testing.assert_close(adapter.delta(NAME), dense, rtol=1e-5, atol=1e-3)  # sums of 3,000 products of order 1


@pytest.mark.parametrize(
    "parts",
    [
        {"lokr_w1": (200, 200), "lokr_w2": (200, 200)},
        {"lokr_w1_a": (30_000, 1), "lokr_w1_b": (1, 30_000), "lokr_w2": (2, 2)},
        {"hada_w1_a": (30_000, 1), "hada_w1_b": (1, 30_000), "hada_w2_a": (30_000, 1), "hada_w2_b": (1, 30_000)},
        {"lora_down.weight": (1, 9_000, 1, 1), "lora_mid.weight": (9_000, 1, 3, 3), "lora_up.weight": (1, 9_000, 1, 1)},
    ],
)
def test_a_small_file_that_claims_an_absurd_layer_is_refused_by_its_header(path, parts):
    tensors = {f"lora_unet_conv_in.{name}": torch.ones(shape) for name, shape in parts.items()}
    with pytest.raises(AdapterError, match="more numbers than any layer of a model has"):
        read_adapter(save(path, tensors), alpha=1)


def test_alpha_has_no_meaning_where_every_module_is_a_lokr_of_two_whole_factors(path):
    whole = {"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(8, 8)}
    tensors = {f"{FLAT}{name}": tensor for name, tensor in whole.items()}
    with pytest.raises(ConfigError, match=r"alpha=8 has no meaning here: .*whole factors.*Leave alpha out"):
        read_adapter(save(path, tensors), alpha=8)
    other = {name.replace("to_out_0", "to_q"): tensor for name, tensor in kohya().items()}
    adapter = read_adapter(save(path, tensors | other), alpha=8)
    assert (adapter.pairs[NAME].scale, adapter.pairs[OTHER].scale) == (1.0, 2.0)
    assert adapter.scale_source == "alpha=8, as given; scale 1 by LyCORIS' definition for 1 LoKr of two whole factors"


def test_pefts_lokr_of_two_whole_factors_has_no_strength_without_its_config(tmp_path):
    folder = next(case for case in CASES if case.name == "PEFT, LoKr of two whole factors").make(tmp_path)
    assert read_adapter(folder, alpha=16).pairs[NAME].scale == 2.0
    (folder / "adapter_config.json").unlink()
    assert read_adapter(folder).pairs[NAME].scale is None


def test_eight_bits_are_read_used_and_written_as_the_same_values(path, tmp_path):
    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in kohya(to_out_0=torch.tensor(2.0)).items()}
    adapter = read_adapter(save(path, tensors))
    a, b = (tensors[f"{FLAT}{ending}"].float() for ending in DOWN_UP)
    same(adapter.delta(NAME), 0.5 * b @ a)
    report = write_with_report(adapter, tmp_path / "wide.safetensors")
    assert report.proof == 0.0
    assert "1 modules of eight bits are written in bfloat16" in " ".join(report.notes)
    same(read_adapter(tmp_path / "wide.safetensors").delta(NAME), 0.5 * b @ a)
    same(merge([(adapter, 1.0)]).delta(NAME), 0.5 * b @ a)
    assert next(report_modules(adapter)).is_finite


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
    assert adapter.pairs[NAME].kind == f"DoRA of {kind[0]} over {kind[1]}"
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


def test_a_dora_that_lost_the_norms_of_one_module_is_refused(path):
    settings = {"r": 4, "lora_alpha": 2, "use_dora": True}
    tensors = pair() | pair(f"{OTHER}.") | {f"{NAME}.lora_magnitude_vector": torch.ones(WIDTH)}
    with pytest.raises(AdapterError, match=rf"says use_dora, but 1 of 2 modules have no norms of a DoRA: {OTHER}"):
        read_adapter(save(path, tensors, {"lora_adapter_metadata": settings}))


def test_an_entry_or_config_that_says_a_thing_twice_is_refused(path, tmp_path):
    twice = '{"r": 4, "lora_alpha": 2, "lora_alpha": 64}'
    save_file(pair(), path, metadata={"lora_adapter_metadata": twice})
    with pytest.raises(AdapterError, match=r"lora_adapter_metadata: .*1 names occur twice, first 'lora_alpha'"):
        read_adapter(path)
    folder = next(case for case in CASES if case.name == "PEFT").make(tmp_path)
    (folder / "adapter_config.json").write_text(twice)
    with pytest.raises(FileFormatError, match=r"adapter_config.json: .*1 names occur twice, first 'lora_alpha'"):
        read_adapter(folder)


def test_another_method_of_peft_is_refused_by_name(tmp_path):
    folder = next(case for case in CASES if case.name == "PEFT").make(tmp_path)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "peft_type": "ADALORA"}))
    with pytest.raises(AdapterError, match="peft_type='ADALORA': of PEFT's methods only LORA, LOHA, LOKR can be read"):
        read_adapter(folder)


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
