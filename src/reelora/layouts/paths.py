"""Module paths of the published models, to find the dots again in names that lost them.

Replacing "." by "_" is not invertible by itself (``to_out_0``, ``time_emb_proj``), but no two paths of these tables become the
same name, so a table inverts it. Numbers are holes: any depth fits.
"""

import re
from collections.abc import Iterator, Mapping

__all__ = ["UNET_TOPS", "flatten", "unflatten"]

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.#")
_FEED_FORWARD = ("ff.net.#.proj", "ff.net.#")

UNET_TOPS = frozenset({"down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "conv_norm_out", "add_embedding"})
"""First components that only a UNet has."""


def _cogvideox() -> Iterator[str]:
    block = "transformer_blocks.#"
    yield from (f"{block}.attn#.{leaf}" for leaf in (*_ATTENTION, "norm_q", "norm_k"))
    yield from (f"{block}.{leaf}" for leaf in (*_FEED_FORWARD, "norm#.linear", "norm#.norm"))
    yield from ("patch_embed.proj", "patch_embed.text_proj", "norm_out.linear", "norm_out.norm", "norm_final", "proj_out")
    yield from ("time_embedding.linear_#", "ofs_embedding.linear_#")


def _unet() -> Iterator[str]:
    for block in ("down_blocks.#", "mid_block", "up_blocks.#"):
        inner = f"{block}.attentions.#.transformer_blocks.#"
        yield from (f"{inner}.attn#.{leaf}" for leaf in _ATTENTION)
        yield from (f"{inner}.{leaf}" for leaf in _FEED_FORWARD)
        yield from (f"{block}.attentions.#.{leaf}" for leaf in ("proj_in", "proj_out", "norm"))
        yield from (f"{block}.resnets.#.{leaf}" for leaf in ("conv#", "norm#", "time_emb_proj", "conv_shortcut"))
    yield from ("down_blocks.#.downsamplers.#.conv", "up_blocks.#.upsamplers.#.conv")
    yield from ("conv_in", "conv_out", "conv_norm_out", "time_embedding.linear_#", "add_embedding.linear_#")


def _text_encoders() -> Iterator[str]:
    layer = "text_model.encoder.layers.#"
    yield from (f"{layer}.self_attn.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj", "out_proj"))
    yield from (f"{layer}.mlp.fc#", "text_projection")
    t5 = "encoder.block.#.layer.#"
    yield from (f"{t5}.SelfAttention.{leaf}" for leaf in "qkvo")
    yield from (f"{t5}.DenseReluDense.{leaf}" for leaf in ("wi", "wi_#", "wo"))


def _sgm(stages: int = 3, layers: int = 2) -> Iterator[tuple[str, str]]:
    """Spelled beginnings of the original SD code, and ours. Source: diffusers, convert_from_ckpt, the UNet's key table."""
    kinds = {"0": "resnets", "1": "attentions"}
    for number in range((stages + 1) * (layers + 1)):
        stage, layer = divmod(number, layers + 1)
        for index, kind in kinds.items():
            yield f"output_blocks_{number}_{index}", f"up_blocks_{stage}_{kind}_{layer}"
            if layer < layers:
                yield f"input_blocks_{number + 1}_{index}", f"down_blocks_{stage}_{kind}_{layer}"
        for index in ("1", "2"):
            yield f"output_blocks_{number}_{index}_conv", f"up_blocks_{stage}_upsamplers_0_conv"
        yield f"input_blocks_{number + 1}_0_op", f"down_blocks_{stage}_downsamplers_0_conv"
    yield from (("middle_block_0", "mid_block_resnets_0"), ("middle_block_2", "mid_block_resnets_1"))
    yield from (("middle_block_1", "mid_block_attentions_0"), ("input_blocks_0_0", "conv_in"), ("out_2", "conv_out"))
    yield from (("time_embed_0", "time_embedding_linear_1"), ("time_embed_2", "time_embedding_linear_2"))
    yield from (("label_emb_0_0", "add_embedding_linear_1"), ("label_emb_0_2", "add_embedding_linear_2"))


_SGM: Mapping[str, str] = dict(_sgm())
_SGM_LEAVES: Mapping[str, str] = {
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
"""Parts of a residual block of the original SD code."""

_PATHS: Mapping[str, str] = {path.replace(".", "_"): path for paths in (_cogvideox, _unet, _text_encoders) for path in paths()}


def flatten(path: str) -> str | None:
    """A path with "_" for "."; None if `unflatten` could not find the dots again."""
    flat = path.replace(".", "_")
    return flat if unflatten(flat) == path else None


def unflatten(flat: str) -> str | None:
    """The path that a name without dots stands for; None if no model of the tables has it."""
    flat = _from_sgm(flat)
    numbers = iter(re.findall(r"\d+", flat))
    path = _PATHS.get(re.sub(r"\d+", "#", flat))
    return None if path is None else re.sub("#", lambda _: next(numbers), path)


def _from_sgm(flat: str) -> str:
    """The same module in diffusers' spelling where the original SD code's is used."""
    if not flat.startswith(("input_blocks_", "middle_block_", "output_blocks_", "time_embed_", "label_emb_", "out_2")):
        return flat
    parts = flat.split("_")
    for count in range(len(parts), 0, -1):
        if ours := _SGM.get("_".join(parts[:count])):
            rest = "_".join(parts[count:])
            return "_".join(filter(None, (ours, _SGM_LEAVES.get(rest, rest))))
    return flat
