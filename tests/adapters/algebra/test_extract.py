"""Laws of extraction: what changed comes back, what did not is left out, what no pair can hold is said."""

import math

import pytest
import safetensors.torch
import torch
from tiny_models import build_transformer
from updates import adapter_of, gap, pair_with, random_pair

from reelora.adapters import Pair, largest_difference, read_adapter, relative_difference, write_adapter
from reelora.adapters.algebra import changed_elsewhere, energy_kept, extract
from reelora.errors import AdapterError, ConfigError, MismatchError

TO_Q, TO_OUT = "transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn1.to_out.0"


def weights(seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        f"{TO_Q}.weight": (48, 32),
        f"{TO_Q}.bias": (48,),
        f"{TO_OUT}.weight": (32, 48),
        "norm_final.weight": (32,),
        "patch_embed.proj.weight": (16, 4, 2, 2),
        "scale_table": (6, 32),
        "steps": (3,),
    }
    tensors = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}
    return tensors | {"steps": torch.arange(3)}


def tuned_by(base, pairs):
    """The weights with these updates added, in the dtype of the base."""
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    for path, pair in pairs.items():
        tuned[f"{path}.weight"] += pair.scale * (pair.b @ pair.a).to(tuned[f"{path}.weight"].dtype)
    return tuned


KNOWN = {TO_Q: random_pair(1, rank=4, out=48, inp=32), TO_OUT: random_pair(2, rank=4, out=32, inp=48)}
ADAPTER = adapter_of({f"transformer.{path}": pair for path, pair in KNOWN.items()})


@pytest.mark.parametrize("size", [{"rank": 4}, {"keep": 1 - 1e-9}])
def test_a_known_adapter_comes_back(size):
    base = weights()
    found = extract(base, tuned_by(base, KNOWN), **size)
    assert found.ranks == (4,)
    # Adding and subtracting in float32 leaves the rounding of the base: 1e-7 of weights as large as the update.
    assert largest_difference(ADAPTER, found) < 1e-5
    assert (found.layout, found.scale_source) == ("memory", "extracted: the strength is in the factors")
    assert energy_kept(ADAPTER, found).total > 1 - 1e-9


def test_a_known_adapter_of_a_real_width_comes_back_by_the_randomised_way():
    pair = pair_with([4.0, 2.0, 1.0, 0.5], out=960, inp=800)
    base = {f"{TO_Q}.weight": 0.02 * torch.randn(960, 800, generator=torch.Generator().manual_seed(3))}
    found = extract(base, tuned_by(base, {TO_Q: pair}), keep=0.9999)
    assert found.ranks == (4,)
    assert relative_difference(pair, found.pairs[f"transformer.{TO_Q}"]) < 1e-5


def test_what_did_not_change_is_left_out():
    base = weights()
    found = extract(base, tuned_by(base, {TO_Q: KNOWN[TO_Q]}), rank=4)
    assert [*found.pairs] == [f"transformer.{TO_Q}"]
    assert found.provenance["not_extracted"] == "nothing else changed"


def test_what_no_pair_can_hold_is_said_with_how_much_it_changed():
    base = weights()
    tuned = tuned_by(base, KNOWN)
    tuned["norm_final.weight"] = 1.5 * base["norm_final.weight"]
    tuned["patch_embed.proj.weight"] = 1.01 * base["patch_embed.proj.weight"]
    tuned["scale_table"] = 1.1 * base["scale_table"]
    tuned["steps"] = torch.tensor([0, 1, 3])
    changes = changed_elsewhere(base, tuned)
    assert changes == pytest.approx(
        {"norm_final.weight": 0.5, "patch_embed.proj.weight": 0.01, "scale_table": 0.1, "steps": 1 / math.sqrt(5)}, rel=1e-4
    )
    words = extract(base, tuned, rank=4).provenance["not_extracted"]
    assert words.startswith("4 tensors that no pair can hold: norm_final.weight (changed by 0.5 of itself), steps")


def test_targets_narrow_what_is_extracted_and_the_rest_is_reported():
    base = weights()
    tuned = tuned_by(base, KNOWN)
    found = extract(base, tuned, rank=4, target_modules=("to_q",))
    assert [*found.pairs] == [f"transformer.{TO_Q}"]
    assert f"{TO_OUT}.weight" in found.provenance["not_extracted"]
    assert [*changed_elsewhere(base, tuned, target_modules=("to_q",))] == [f"{TO_OUT}.weight"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_difference_is_taken_in_float32_whatever_the_checkpoints_hold(dtype):
    base = weights(dtype=dtype)
    tuned = tuned_by(base, KNOWN)
    true = (tuned[f"{TO_Q}.weight"].double() - base[f"{TO_Q}.weight"].double()).float()
    found = extract(base, tuned, keep=1.0)
    assert gap(true, found.delta(f"transformer.{TO_Q}")) < 2e-5
    assert all(pair.a.dtype == torch.float32 for pair in found.pairs.values())


def test_a_wider_tuned_checkpoint_is_compared_at_its_own_precision():
    base = weights(dtype=torch.bfloat16)
    tuned = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in base.items()}
    tuned[f"{TO_Q}.weight"] = tuned[f"{TO_Q}.weight"] + 1e-9
    assert extract(base, tuned, rank=1).delta(f"transformer.{TO_Q}").mean() == pytest.approx(1e-9, rel=1e-3)


def test_the_rank_of_each_module_follows_its_own_spectrum():
    steep, flat = pair_with([5.0, 0.01, 0.01], out=48, inp=32), pair_with([1.0, 1.0, 1.0], out=32, inp=48)
    base = weights()
    found = extract(base, tuned_by(base, {TO_Q: steep, TO_OUT: flat}), keep=0.98)
    assert [pair.rank for pair in found.pairs.values()] == [1, 3]
    assert found.spec is not None
    assert (found.spec.rank_of(TO_Q), found.spec.rank_of(TO_OUT)) == (1, 3)


def test_checkpoints_may_be_files_and_folders_with_shards(tmp_path):
    model = build_transformer().half()
    model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    for name, parameter in model.named_parameters():
        if name.endswith("to_q.weight"):
            parameter.data += 0.1 * torch.outer(torch.ones(parameter.shape[0]), torch.ones(parameter.shape[1])).half()
    safetensors.torch.save_file(dict(model.state_dict()), tmp_path / "tuned.safetensors")
    found = extract(tmp_path / "base", str(tmp_path / "tuned.safetensors"), rank=1)
    assert [*found.pairs] == [f"transformer.transformer_blocks.{block}.attn1.to_q" for block in (0, 1)]
    write_adapter(found, tmp_path / "adapter.safetensors")
    assert largest_difference(found, read_adapter(tmp_path / "adapter.safetensors")) == 0.0


def test_checkpoints_are_never_written_to(tmp_path):
    base = weights()
    safetensors.torch.save_file(base, tmp_path / "base.safetensors")
    safetensors.torch.save_file(tuned_by(base, KNOWN), tmp_path / "tuned.safetensors")
    from reelora.tensorio import fingerprint, open_tensors

    stores = [open_tensors(tmp_path / f"{name}.safetensors") for name in ("base", "tuned")]
    before = [fingerprint(store) for store in stores]
    extract(*stores, rank=2)
    assert [fingerprint(store) for store in stores] == before


def test_two_models_are_no_two_states_of_one():
    base = weights()
    other = {name: tensor for name, tensor in base.items() if name != "scale_table"}
    other |= {f"{TO_Q}.weight": torch.ones(48, 31), "extra.weight": torch.ones(2, 2)}
    with pytest.raises(
        MismatchError,
        match=r"(?s)1 tensors are only in base: scale_table.*1 tensors are only in tuned: extra\.weight.*"
        r"1 tensors are of another shape: .*to_q\.weight \(\(48, 32\) and \(48, 31\)\)",
    ):
        extract(base, other, rank=2)


def test_there_has_to_be_something_to_extract():
    base = weights()
    with pytest.raises(AdapterError, match="No targeted matrix differs"):
        extract(base, tuned_by(base, {}), rank=2)


def test_every_matrix_with_nan_is_named():
    base = weights()
    tuned = tuned_by(base, KNOWN)
    for path in (TO_Q, TO_OUT):
        tuned[f"{path}.weight"][0, 0] = math.nan
    with pytest.raises(AdapterError, match=rf"2 matrices hold NaN or infinite values in base or tuned: {TO_Q}, {TO_OUT}"):
        extract(base, tuned, rank=2)


@pytest.mark.parametrize(
    "settings", [{}, {"rank": 2, "keep": 0.5}, {"rank": 2, "role": "transfomer"}, {"rank": 2, "target_modules": ()}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        extract(weights(), weights(1), **settings)


def test_the_outcome_does_not_depend_on_the_order_of_the_modules():
    base = weights()
    tuned = tuned_by(base, KNOWN)
    forwards, backwards = extract(base, tuned, rank=2), extract(dict(reversed(base.items())), tuned, rank=2)
    assert largest_difference(forwards, backwards) == 0.0


def test_a_half_precision_adapter_can_be_asked_for():
    base = weights()
    found = extract(base, tuned_by(base, KNOWN), rank=4, dtype=torch.bfloat16)
    assert all((pair.a.dtype, pair.b.dtype) == (torch.bfloat16, torch.bfloat16) for pair in found.pairs.values())
    assert largest_difference(ADAPTER, found) < 2**-7
    assert isinstance(found.pairs[f"transformer.{TO_Q}"], Pair)
