"""The rows: one per dialect. Adding a dialect is adding a row."""

from collections.abc import Mapping

from .layout import Layout
from .place import DENOISER, Slot
from .sat import Sat
from .suffixed import Dotted, Flat, Suffixed
from .traversal import Traversal, TraversalList

__all__ = ["LAYOUTS"]

_LYCORIS: Mapping[str, Slot] = {
    "hada_w1_a": "hada_w1_a",
    "hada_w1_b": "hada_w1_b",
    "hada_w2_a": "hada_w2_a",
    "hada_w2_b": "hada_w2_b",
    "hada_t1": "hada_t1",
    "hada_t2": "hada_t2",
    "lokr_w1": "lokr_w1",
    "lokr_w1_a": "lokr_w1_a",
    "lokr_w1_b": "lokr_w1_b",
    "lokr_w2": "lokr_w2",
    "lokr_w2_a": "lokr_w2_a",
    "lokr_w2_b": "lokr_w2_b",
    "lokr_t2": "lokr_t2",
}
_PEFT: Mapping[str, Slot] = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
_DOWN_UP: Mapping[str, Slot] = {
    "lora_down.weight": "A",
    "lora_up.weight": "B",
    "lora_mid.weight": "mid",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
}
_KOHYA: Mapping[str, Slot] = {**_DOWN_UP, **_LYCORIS}
_EITHER: Mapping[str, Slot] = {**_PEFT, **_KOHYA}
_BARE: Mapping[str, Slot] = {**_PEFT, "lora_A": "A", "lora_B": "B", **_KOHYA}

_ROLES: Mapping[str, str] = {
    "transformer.": "transformer",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
_MAYBE_ROLES: Mapping[str, str] = {**_ROLES, "": DENOISER}
_PEFT_DORA, _LYCORIS_DORA = ("PEFT", "out"), frozenset({("LyCORIS", "out"), ("LyCORIS", "in")})
_TEXT: Mapping[str, str] = {"lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="diffusers",
        producers="diffusers `save_lora_weights`; Reelora; without alpha CogVideo `finetune/`, its SAT export, finetrainers",
        example="transformer.transformer_blocks.0.attn1.to_q.lora_A.weight",
        grammar=Suffixed(Dotted(_ROLES), _EITHER),
        strength="`lora_adapter_metadata` (or finetrainers' `lora_config`) in the header, or `.alpha` tensors, if at all",
        doras=frozenset({_PEFT_DORA}),
        is_written=True,
    ),
    Layout(
        name="bare",
        producers="diffusers `save_lora_adapter`; CogKit; Mochi; LyCORIS on plain paths",
        example="transformer_blocks.0.attn1.to_q.lora_A.weight",
        grammar=Suffixed(Dotted({"": DENOISER}), _BARE),
        strength="`lora_adapter_metadata` without role in the header, if at all; `.alpha` tensors of LyCORIS",
    ),
    Layout(
        name="fastvideo",
        producers="FastVideo's extraction",
        example="transformer_blocks.0.attn1.to_q.lora_rank",
        grammar=Suffixed(Dotted(_MAYBE_ROLES), {**_PEFT, "lora_alpha": "alpha", "lora_rank": "rank"}),
        strength="`.lora_alpha` tensors",
        needs=frozenset({"rank"}),
    ),
    Layout(
        name="peft",
        producers="PEFT `save_pretrained` (LoRA, LoHa, LoKr)",
        example="base_model.model.transformer_blocks.0.attn1.to_q.lora_A.weight",
        grammar=Suffixed(Dotted({"base_model.model.": DENOISER}), {**_PEFT, **_LYCORIS}),
        strength="`adapter_config.json` beside it",
        scale_of_whole_lokr=None,
        doras=frozenset({_PEFT_DORA}),
        is_written=True,
    ),
    Layout(
        name="peft-slot",
        producers="state dicts of live PEFT models; DiffSynth",
        example="transformer_blocks.0.attn1.to_q.lora_A.default.weight",
        grammar=Suffixed(
            Dotted({**_MAYBE_ROLES, "base_model.model.": DENOISER, "diffusion_model.": DENOISER}), _PEFT, is_named=True
        ),
        strength="not stored",
    ),
    Layout(
        name="kohya",
        producers="sd-scripts, musubi-tuner, OneTrainer for SD, LyCORIS",
        example="lora_unet_transformer_blocks_0_attn1_to_q.lora_down.weight",
        grammar=Suffixed(Flat({"lora_unet_": DENOISER, **_TEXT}), _KOHYA),
        strength="`.alpha` tensors, `ss_network_alpha` in the header",
        without_alpha="kohya's networks/lora.py: a missing or zero alpha means alpha = rank",
        doras=_LYCORIS_DORA,
        is_written=True,
    ),
    Layout(
        name="fun",
        producers="VideoX-Fun, CogVideoX-Fun",
        example="lora_unet__transformer_blocks_0_attn1_to_q.lora_down.weight",
        grammar=Suffixed(Flat({"lora_unet__": DENOISER, "lora_te__": "text_encoder"}), _KOHYA),
        strength="`.alpha` tensors",
        is_written=True,
    ),
    Layout(
        name="onetrainer",
        producers="OneTrainer (`lora_transformer_`, `lora_te1_`), SimpleTuner (`lycoris_`)",
        example="lora_transformer_transformer_blocks_0_attn1_to_q.lora_down.weight",
        grammar=Suffixed(Flat({"lora_transformer_": "transformer", "lycoris_": DENOISER, **_TEXT}), _KOHYA),
        strength="`.alpha` tensors",
    ),
    Layout(
        name="comfyui",
        producers="ComfyUI, ai-toolkit, diffusion-pipe",
        example="diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight",
        grammar=Suffixed(
            Dotted({"diffusion_model.": DENOISER, "model.diffusion_model.": DENOISER}, has_original=True), _EITHER
        ),
        strength="`.alpha` tensors, if at all",
        doras=frozenset({("LyCORIS", "in")}),  # over rows it divides by the norm of W alone: comfy/weight_adapter/base.py
        is_written=True,
    ),
    Layout(
        name="sat",
        producers="CogVideo's SAT code",
        example="model.diffusion_model.transformer.layers.0.attention.query_key_value.matrix_A.0",
        grammar=Sat(),
        strength="the YAML it was trained with (`lora_config.params`)",
        is_written=True,
    ),
    Layout(
        name="cloneofsimo",
        producers="cloneofsimo/lora (`.safetensors`)",
        example="unet:0:up",
        grammar=Traversal(),
        strength="none",
        without_alpha="cloneofsimo/lora adds up @ down as it stands: alpha = rank",
    ),
    Layout(
        name="cloneofsimo-list",
        producers="cloneofsimo/lora (`.pt`, a bare list)",
        example="0",
        grammar=TraversalList(),
        strength="none",
        without_alpha="cloneofsimo/lora adds up @ down as it stands: alpha = rank",
    ),
    Layout(
        name="diffusers-processor",
        producers="diffusers until 0.20 (attention processors)",
        example="unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
        grammar=Suffixed(
            Dotted(_MAYBE_ROLES, ((r"\.processor\.(to_[qkv])_lora$", r".\1"), (r"\.processor\.to_out_lora$", ".to_out.0"))),
            {"down.weight": "A", "up.weight": "B"},
        ),
        strength="none",
        without_alpha="diffusers' LoRALinearLayer without network_alpha: scale 1",
    ),
    Layout(
        name="diffusers-old",
        producers="diffusers 0.20 to 0.26 (`.lora.down`), its text encoders (`.lora_linear_layer.down`)",
        example="unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight",
        grammar=Suffixed(
            Dotted(_MAYBE_ROLES),
            {
                "lora.down.weight": "A",
                "lora.up.weight": "B",
                "lora_linear_layer.down.weight": "A",
                "lora_linear_layer.up.weight": "B",
            },
        ),
        strength="none",
        without_alpha="diffusers' LoRALinearLayer without network_alpha: scale 1",
    ),
)
"""Every dialect. Where two of them explain a whole file (text encoders alone, say), it is of the first."""
