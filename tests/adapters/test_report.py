"""What is said of an adapter: from its header, from its values, beside its base, and beside another adapter."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from reelora.adapters import (
    Adapter,
    Magnitude,
    Pair,
    base_of,
    check_fits,
    compared_with_base,
    content_hash,
    facts_of,
    fingerprints_of,
    largest_difference,
    read_adapter,
    relative_difference,
    report_modules,
    write_adapter,
)
from reelora.catalog import SHAPE_FINGERPRINTS
from reelora.errors import AdapterError, MismatchError

NAME = "transformer.transformer_blocks.0.attn1.to_q"


def of(pairs, **entries):
    return Adapter(pairs=pairs, spec=None, layout="memory", scale_source="a test", provenance=entries)


def pair(*, rank=2, scale: float | None = 0.5, width=6, dtype=torch.float32, size=1.0, magnitude=None):
    draw = torch.Generator().manual_seed(rank)
    a, b = torch.randn(rank, width, generator=draw), torch.randn(width, rank, generator=draw) * size
    return Pair(a.to(dtype), b.to(dtype), scale, magnitude=magnitude)


DORAS = {
    "none": pair(),
    "norms of 1": pair(magnitude=Magnitude(torch.ones(6), "out", "PEFT")),
    "norms of 2": pair(magnitude=Magnitude(2 * torch.ones(6), "out", "PEFT")),
    "over columns": pair(magnitude=Magnitude(torch.ones(6), "in", "LyCORIS")),
    "of LyCORIS": pair(magnitude=Magnitude(torch.ones(6), "out", "LyCORIS")),
}


def test_the_norms_and_the_kind_of_a_dora_are_part_of_its_hash():
    assert len({content_hash(of({NAME: dora})) for dora in DORAS.values()}) == len(DORAS)


def test_the_hash_of_an_adapter_counts_everything_that_acts_and_nothing_else():
    first, second = {NAME: pair(), f"{NAME}2": pair(rank=3)}, {f"{NAME}2": pair(rank=3), NAME: pair()}
    assert content_hash(of(first)) == content_hash(of(second, trigger_words="twinkle"))
    others = [{NAME: pair()}, {**first, NAME: pair(scale=1.0)}, {**first, NAME: pair(scale=None)}]
    assert len({content_hash(of(pairs)) for pairs in (first, *others)}) == 4


def test_doras_differ_by_their_norms_too():
    assert relative_difference(DORAS["norms of 1"], DORAS["norms of 1"]) == 0
    assert relative_difference(DORAS["norms of 1"], DORAS["norms of 2"]) == 1
    half = replace(DORAS["norms of 1"], scale=0.25)
    assert relative_difference(DORAS["norms of 1"], half) == pytest.approx(0.5)


@pytest.mark.parametrize("other", ["none", "over columns", "of LyCORIS"])
def test_a_dora_is_not_compared_with_what_is_another_function_of_the_base(other):
    with pytest.raises(MismatchError, match=r"DoRA of PEFT over out and .*different functions"):
        relative_difference(DORAS["norms of 1"], DORAS[other])


def test_a_value_that_is_no_number_is_infinitely_far_from_any_other():
    broken = pair()
    broken = replace(broken, b=broken.b.clone().fill_(torch.nan))
    assert relative_difference(pair(), broken) == math.inf
    assert largest_difference(of({NAME: pair(), f"{NAME}2": pair()}), of({NAME: pair(), f"{NAME}2": broken})) == math.inf


@pytest.mark.parametrize("place", [0, 1, 2])
def test_values_that_the_wanted_dtype_cannot_hold_are_never_written(place, tmp_path):
    pairs = {f"{NAME}{index}": pair(size=1e7 if index == place else 1.0) for index in range(3)}
    with pytest.raises(AdapterError, match=rf"{NAME}{place}"):
        write_adapter(of(pairs), tmp_path / "a.safetensors", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_each_module_has_the_bar_of_its_own_dtype(tmp_path):
    """B times 1e-40 is subnormal: the error of 1e-5 would be fine in bfloat16, but this module is float32."""
    pairs = {NAME: pair(dtype=torch.bfloat16, scale=0.5), NAME.replace("to_q", "to_k"): pair(scale=5e-41)}
    with pytest.raises(AdapterError, match=r"1 of 2 modules differ from those to write: .*to_k"):
        write_adapter(of(pairs), tmp_path / "a.pt", "sat")


def test_a_norm_at_scale_1_is_known_where_the_scale_is_not():
    known, unknown = (next(report_modules(of({NAME: pair(scale=scale)}))) for scale in (0.5, None))
    assert known.norm == pytest.approx(0.5 * float(torch.linalg.matrix_norm(pair().b @ pair().a)))
    assert (unknown.norm, unknown.bare_norm, unknown.effective_rank) == (None, known.bare_norm, known.effective_rank)
    off = next(report_modules(of({NAME: pair(scale=0.0)})))
    assert (off.norm, off.is_dead, off.effective_rank) == (0.0, True, 0)


PRODUCERS = {
    "Reelora": {"reelora.version": "0.1.0", "ss_network_module": "networks.lora"},
    "ai-toolkit": {"software": '{"name": "ai-toolkit", "version": "0.7.8"}', "ss_network_module": "networks.lora"},
    "OneTrainer": {"ot_branch": "master", "ss_network_module": "networks.lora"},
    "LyCORIS": {"ss_network_module": "lycoris.kohya", "ss_sd_scripts_commit_hash": "ab"},
    "sd-scripts": {"ss_sd_scripts_commit_hash": "ab", "ss_network_module": "networks.lora"},
    "musubi-tuner": {"ss_network_module": "networks.lora_wan"},
    "finetrainers": {"lora_config": "{}"},
    "diffusers": {"lora_adapter_metadata": "{}"},
}


@pytest.mark.parametrize("producer", PRODUCERS)
def test_the_header_tells_which_program_wrote_a_file(producer):
    told = facts_of(of({NAME: pair()}), PRODUCERS[producer])["producer"]
    assert isinstance(told, str)
    assert producer in told.partition(", by the header's ")[0]


def test_where_no_program_is_told_those_that_write_the_layout_are_named(tmp_path):
    save_file({f"{NAME}.lora_A.weight": pair().a, f"{NAME}.lora_B.weight": pair().b}, tmp_path / "a.safetensors")
    told = facts_of(read_adapter(tmp_path / "a.safetensors"))["producer"]
    assert isinstance(told, str)
    assert told.startswith("not said; this layout is written by")
    assert "CogVideo" in told


ATTENTION = {f"transformer.transformer_blocks.{layer}.attn1.to_q": pair(rank=1, width=3072) for layer in range(42)}


@pytest.mark.parametrize("name", SHAPE_FINGERPRINTS)
def test_the_fingerprint_of_the_base_tells_models_apart_that_the_modules_cannot(name):
    assert len(base_of(of(ATTENTION))[0]) == len(SHAPE_FINGERPRINTS)
    assert base_of(of(ATTENTION, base_shapes=SHAPE_FINGERPRINTS[name]))[0] == (name,)


def test_a_fingerprint_never_makes_an_adapter_fit_what_its_modules_do_not():
    narrow = {NAME: pair(width=1920)}
    names, _ = base_of(of(narrow, base_shapes=SHAPE_FINGERPRINTS["CogVideoX-5B"]))
    assert names == ("CogVideoX-2B",)


def test_a_family_that_nobody_knows_is_said():
    names, sentence = base_of(of({"transformer.blocks.0.attn1.to_q": pair(width=5120)}))
    assert (names, sentence.startswith("none of the models that this version knows")) == ((), True)


WEIGHTS = {"transformer_blocks.0.attn1.to_q.weight": torch.ones(6, 6), "proj_out.weight": torch.ones(4, 6)}


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (WEIGHTS, "the weights that it was trained on"),
        ({name: tensor.bfloat16() for name, tensor in WEIGHTS.items()}, "the weights that it was trained on"),
        ({**WEIGHTS, "proj_out.weight": torch.zeros(4, 6)}, "another fine-tune"),
        ({**WEIGHTS, "proj_out.weight": torch.ones(8, 6)}, "other layers"),
    ],
)
def test_what_the_stored_fingerprints_say_of_weights(weights, sentence):
    assert sentence in compared_with_base(of({NAME: pair()}, **fingerprints_of(WEIGHTS)), weights)
    assert "stores no fingerprint" in compared_with_base(of({NAME: pair()}), weights)


def test_a_module_whose_weight_is_no_matrix_does_not_fit():
    with pytest.raises(MismatchError, match=r"1 of 1 modules do not fit .*\(6,\)"):
        check_fits(of({NAME: pair()}), {f"{NAME.partition('.')[2]}.weight": torch.ones(6)}, "transformer")


def test_small_factorisations_leave_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    relative_difference(pair(), replace(pair(), scale=1.0))
    with pytest.raises(MismatchError):
        relative_difference(pair(), pair(width=8))
    assert torch.get_num_threads() == before
