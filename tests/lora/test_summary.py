"""What an attach says about itself."""

from reelora.adapters import LoraSpec, share_of_layer
from reelora.lora import AttachSummary, attach


def test_the_share_of_a_layer_is_the_papers_example():
    """Hu et al., arXiv:2106.09685: d = k = 1024 and r = 4 make 8,192 parameters, 0.78 % of the layer."""
    assert share_of_layer(4, (1024, 1024)) * 1024 * 1024 == 8192
    assert f"{share_of_layer(4, (1024, 1024)):.2%}" == "0.78%"


def test_the_printed_lines_hold_counts_scale_and_shares():
    summary = AttachSummary(
        model_class="CogVideoXTransformer3DModel",
        role="transformer",
        spec=LoraSpec(rank=128, alpha=64, rank_pattern={"to_q": 4}),
        shapes={"a.to_q": (1024, 1024), "a.to_k": (1024, 1024), "b.to_k": (1024, 1024)},
        trainable_parameters=532_480,
        total_parameters=10_000_000,
        advice=(),
    )
    text = str(summary)
    assert "3 Linears" in text
    assert "532,480 of 10,000,000 parameters (5.32%)" in text
    assert "64 / 128 = 0.5" in text
    assert "1 of 1024 x 1024, rank 4: 8,192 parameters each, 0.78% of the layer" in text
    assert "2 of 1024 x 1024, rank 128: 262,144 parameters each, 25.00% of the layer" in text


def test_counts_are_those_of_the_model(transformer):
    before = sum(p.numel() for p in transformer.parameters())
    summary = attach(transformer, LoraSpec(rank=4, alpha=2))
    assert summary.trainable_parameters == sum(p.numel() for p in transformer.parameters() if p.requires_grad)
    assert summary.total_parameters == before + summary.trainable_parameters == sum(p.numel() for p in transformer.parameters())


def test_poor_settings_come_with_advice(transformer):
    summary = attach(transformer, LoraSpec(rank=64, alpha=1))
    assert len(summary.advice) == 2  # alpha 1, and a rank over 32 x 32
    assert [text for label, text in summary.rows() if label == "advice"] == [str(advice) for advice in summary.advice]
