"""Poor settings come with a reason and its source."""

import pytest

from reelora.adapters import LoraSpec

WIDE = {"transformer_blocks.0.attn1.to_q": (1920, 1920)}


def sentences(spec, shapes=WIDE, model_class="CogVideoXTransformer3DModel"):
    return [advice.sentence for advice in spec.advice(shapes, model_class=model_class)]


def test_good_settings_get_none():
    assert sentences(LoraSpec()) == []
    assert sentences(LoraSpec(rank=64, alpha=64)) == []
    assert sentences(LoraSpec(rank=128, alpha=16, rslora=True)) == []


@pytest.mark.parametrize(
    ("spec", "shapes", "beginning"),
    [
        (LoraSpec(alpha=1), WIDE, "alpha 1 scales the update by 0.00781"),
        (LoraSpec(alpha=31), WIDE, "alpha / rank is 0.242, under 0.25"),
        (LoraSpec(alpha=257), WIDE, "alpha / rank is 2.01, over 2"),
        (LoraSpec(rank=32, alpha=32), WIDE, "rank 32 is low for a video model"),
        (LoraSpec(), {"a.attn1.to_q": (1920, 64)}, "the rank is over the size of 1 layers (a.attn1.to_q)"),
        (LoraSpec(), {"transformer_blocks.0.ff.net.2": (1920, 7680)}, "1 targets lie outside attention"),
        (LoraSpec(), {"down.attentions.0.proj_in": (320, 320)}, "1 targets lie outside attention"),
    ],
)
def test_each_poor_setting_gets_its_own_advice(spec, shapes, beginning):
    advice = spec.advice(shapes, model_class="CogVideoXTransformer3DModel")
    assert [one.sentence[: len(beginning)] for one in advice] == [beginning]
    assert all(one.source in str(one) and one.source for one in advice)


@pytest.mark.parametrize("path", ["a.attn2.to_q", "layers.0.self_attn.q_proj", "block.0.layer.0.SelfAttention.q"])
def test_attention_is_known_by_its_name_in_every_kind_of_model(path):
    assert sentences(LoraSpec(), {path: (768, 768)}, "") == []


@pytest.mark.parametrize("spec", [LoraSpec(alpha=32), LoraSpec(alpha=256), LoraSpec(rank=64, alpha=32)])
def test_the_bounds_themselves_are_fine(spec):
    assert sentences(spec) == []


def test_a_low_rank_is_poor_only_on_a_real_cogvideox():
    low = LoraSpec(rank=16, alpha=16)
    assert sentences(low, {"a.attn1.to_q": (192, 192)}) == []
    assert sentences(low, WIDE, "UNet2DConditionModel") == []
