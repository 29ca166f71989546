"""Names of whole SAT checkpoints: explained one by one, both ways."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelora.layouts import SAT_ROLES, adapter_keys, sat_names

MAPS = Path(__file__).parents[1] / "golden" / "sat" / "maps"
CASES = {"t2v_2b": "transformer", "t2v_5b": "transformer", "i2v_5b": "transformer", "vae": "vae"}
RULES = {
    "copy": ((0,), 1),
    "rows third 0": ((0,), 3),
    "rows third 1": ((1,), 3),
    "rows third 2": ((2,), 3),
    "chunks 0,1,2,6,7,8 of 12 along rows": ((0, 1, 2, 6, 7, 8), 12),
    "chunks 3,4,5,9,10,11 of 12 along rows": ((3, 4, 5, 9, 10, 11), 12),
}
"""How the recordings spell a cut."""


def rows(case: str) -> list[tuple[str, str, str]]:
    """SAT's name, ours (empty for what is dropped) and the rule, as the original converter has them by value."""
    lines = (MAPS / f"{case}.tsv").read_text().splitlines()
    return [(sat, "" if ours.startswith("(") else ours, rule) for sat, ours, rule in (line.split("\t") for line in lines)]


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_comes_from_where_the_original_converter_takes_it(case):
    told = rows(case)
    reading = sat_names(CASES[case], num_levels=4).read(dict.fromkeys(sat for sat, _, _ in told))
    assert reading.strangers == ()
    wanted = {ours: (sat, *RULES[rule]) for sat, ours, rule in told if ours}
    found = {ours: (cut.key, cut.chunks, cut.num_chunks) for ours, cut in reading.cuts.items()}
    assert found | wanted == found
    dropped = {sat for sat, ours, _ in told if not ours}
    # The converter drops 2B's position table, which diffusers computes; we keep what is stored.
    assert set(reading.left_out) | {found[name][0] for name in found.keys() - wanted.keys()} == dropped


@pytest.mark.parametrize("case", CASES)
def test_the_way_back_gives_the_same_names(case):
    names = sat_names(CASES[case], num_levels=4)
    theirs = [sat for sat, ours, _ in rows(case) if ours]
    writing = names.write(names.read(dict.fromkeys(theirs)).cuts)
    assert writing.strangers == ()
    assert set(writing.joins) == set(theirs)


@given(depth=st.integers(1, 120), leaf=st.sampled_from(["weight", "bias"]))
def test_names_round_trip_for_any_depth(depth, leaf):
    names = sat_names("transformer")
    key = f"transformer.layers.{depth}.attention.query_key_value.{leaf}"
    cuts = names.read([key]).cuts
    assert len(cuts) == 3
    assert list(names.write(cuts).joins) == [key]


def test_the_weights_beside_a_lora_are_those_of_the_base():
    names = sat_names("transformer")
    under = "transformer.layers.0.attention.dense"
    assert names.read([f"{under}.original.weight"]).cuts.keys() == names.read([f"{under}.weight"]).cuts.keys()
    assert adapter_keys([f"{under}.matrix_A.0", f"{under}.original.weight"]) == [f"{under}.matrix_A.0"]


def test_one_weight_under_two_names_is_a_stranger():
    under = "transformer.layers.0.attention.dense"
    assert sat_names("transformer").read([f"{under}.weight", f"{under}.original.weight"]).strangers == (
        f"{under}.original.weight",
    )


@pytest.mark.parametrize(
    "key",
    [
        "transformer.layers.01.input_layernorm.weight",
        "transformer.layers.0.attention.query_key_value.weights",
        "mixins.swiglu.w2.0.weight",
        "transformer.word_embeddings.weight",
        "transformer.layers.0.cross_attention.dense.weight",
        "",
    ],
)
def test_what_no_rule_explains_is_a_stranger(key):
    assert sat_names("transformer").read([key]).strangers == (key,)


def test_a_tensor_of_ours_without_its_siblings_cannot_be_written():
    name = "transformer_blocks.0.attn1.to_q.weight"
    assert sat_names("transformer").write([name]).strangers == (name,)


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("transformer.layers.3.attention.query_key_value.bias", "thirds"),
        ("transformer.layers.3.attention.dense.weight", "columns"),
        ("transformer.layers.3.attention.dense.bias", "same"),
        ("transformer.layers.3.mlp.dense_h_to_4h.weight", "rows"),
        ("transformer.layers.3.mlp.dense_4h_to_h.weight", "columns"),
        ("mixins.adaln_layer.adaLN_modulations.3.1.weight", "same"),
    ],
)
def test_shards_are_split_as_sat_does(key, place):
    assert sat_names("transformer").shards(key) == place


def test_prefixes_tell_the_roles_apart():
    assert len({prefix.partition(".")[0] for prefix in SAT_ROLES.values()}) == len(SAT_ROLES)
