"""Files that nobody here made are read at the strength that they have; a DoRA stays a DoRA; the rest is refused."""

import pytest
import torch
from corpus import factors
from wild import DORAS, FINETUNED, PUBLISHED, REFUSALS

from reelora.adapters import facts_of, read_adapter, write_adapter
from reelora.errors import AdapterError, UnknownScaleError


def read(case, folder):
    return read_adapter(case.make(folder), **case.options)


@pytest.mark.parametrize("case", PUBLISHED, ids=lambda case: f"{case.name}{', with its YAML' * bool(case.options)}")
def test_a_file_of_others_is_read_at_its_strength_or_known_to_be_silent(case, tmp_path):
    adapter = read(case, tmp_path)
    assert adapter.layout == case.layout
    assert {pair.scale for pair in adapter.pairs.values()} == {case.scale}
    if case.scale is None:
        with pytest.raises(UnknownScaleError):
            adapter.delta(case.module)
    else:
        assert float(adapter.delta(case.module).abs().max()) > 0


def published(name, folder, **options):
    case = next(case for case in PUBLISHED if case.name == name and not case.options)
    folder.mkdir()
    return read_adapter(case.make(folder), **options)


@pytest.mark.parametrize("case", ["t2v_2b_lora", "t2v_5b_lora_a8", FINETUNED])
def test_a_sat_checkpoint_and_the_official_export_of_it_hold_the_same_values(case, tmp_path):
    checkpoint = published(f"SAT, {case}", tmp_path / "sat")
    exported = published(f"CogVideo's export of {case}", tmp_path / "exported")
    assert checkpoint.pairs.keys() == exported.pairs.keys()
    for name, pair in checkpoint.pairs.items():
        assert torch.equal(pair.a, exported.pairs[name].a)
        assert torch.equal(pair.b, exported.pairs[name].b)


def test_lora_disney_is_a_whole_stable_diffusion_adapter_with_two_words(tmp_path):
    facts = facts_of(published("lora_disney", tmp_path / "published"))
    assert (facts["modules"], facts["base"], facts["ranks"]) == (192, ["SD 1.5"], {1: 192})
    assert facts["roles"] == ["unet", "text_encoder"]
    assert facts["tokens"] == ["<s1>", "<s2>"]


@pytest.mark.parametrize("case", DORAS, ids=lambda case: case.name)
def test_a_dora_is_kept_as_it_is_and_never_used_as_a_plain_lora(case, tmp_path):
    adapter = read(case, tmp_path)
    pair = adapter.pairs[case.module]
    assert (adapter.layout, pair.scale) == (case.layout, case.scale)
    assert all(torch.equal(held, stored) for held, stored in zip((pair.a, pair.b), factors(), strict=True))
    assert "DoRA" in str(facts_of(adapter)["kind"])
    with pytest.raises(AdapterError, match="depends on the weights of its base"):
        adapter.delta(case.module)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_what_would_load_wrong_or_in_part_is_refused_with_the_reason(refusal, tmp_path):
    with pytest.raises(AdapterError) as caught:
        read_adapter(refusal.make(tmp_path))
    assert refusal.why in str(caught.value)


def test_an_official_export_gives_sats_scale_once_its_producer_is_named(tmp_path):
    exported = published("CogVideo's export of t2v_2b_lora", tmp_path / "exported", producer="sat")
    write_adapter(exported, tmp_path / "told.safetensors")
    assert {pair.scale for pair in read_adapter(tmp_path / "told.safetensors").pairs.values()} == {0.25}
