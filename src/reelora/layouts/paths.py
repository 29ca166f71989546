"""Module paths of the published models, to find the dots again in names that lost them.

Replacing "." by "_" is not invertible by itself (``to_out_0``, ``time_emb_proj``), but no two paths of these tables become the
same name, so a table inverts it. Numbers are holes: any depth fits.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

__all__ = ["UNET_TOPS", "flatten", "from_original", "unflatten"]

_NUMBER, _HOLE = re.compile(r"[0-9]+"), re.compile("#")

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.#")
_FEED_FORWARD = ("ff.net.#.proj", "ff.net.#")

UNET_TOPS = frozenset({"down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "conv_norm_out", "add_embedding"})
"""First components that only a UNet has."""


def _flat(path: str) -> str:
    return path.replace(".", "_")


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
    """Beginnings of paths in the original SD code, and ours. Source: diffusers, convert_from_ckpt, the UNet's key table."""
    kinds = {"0": "resnets", "1": "attentions"}
    for number in range((stages + 1) * (layers + 1)):
        stage, layer = divmod(number, layers + 1)
        for index, kind in kinds.items():
            yield f"output_blocks.{number}.{index}", f"up_blocks.{stage}.{kind}.{layer}"
            if layer < layers:
                yield f"input_blocks.{number + 1}.{index}", f"down_blocks.{stage}.{kind}.{layer}"
        for index in ("1", "2"):
            yield f"output_blocks.{number}.{index}.conv", f"up_blocks.{stage}.upsamplers.0.conv"
        yield f"input_blocks.{number + 1}.0.op", f"down_blocks.{stage}.downsamplers.0.conv"
    yield from (("middle_block.0", "mid_block.resnets.0"), ("middle_block.2", "mid_block.resnets.1"))
    yield from (("middle_block.1", "mid_block.attentions.0"), ("input_blocks.0.0", "conv_in"), ("out.2", "conv_out"))
    yield from (("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"))
    yield from (("label_emb.0.0", "add_embedding.linear_1"), ("label_emb.0.2", "add_embedding.linear_2"))


_SGM: Mapping[str, str] = dict(_sgm())
_SGM_LEAVES: Mapping[str, str] = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
"""Parts of a residual block of the original SD code."""
_SGM_TOPS = frozenset(path.partition(".")[0] for path in _SGM)

_PATHS: Mapping[str, str] = {_flat(path): path for paths in (_cogvideox, _unet, _text_encoders) for path in paths()}
_FLAT_SGM, _FLAT_LEAVES = ({_flat(theirs): _flat(ours) for theirs, ours in table.items()} for table in (_SGM, _SGM_LEAVES))
_FLAT_TOPS = tuple(f"{top}_" for top in sorted(_SGM_TOPS))
_LONGEST = 5
"""Parts that a beginning of the original SD code has at most, dots and underscores told apart or not."""


def flatten(path: str) -> str | None:
    """A path with "_" for "."; None if `unflatten` could not find the dots again."""
    flat = _flat(path)
    return flat if unflatten(flat) == path else None


@lru_cache(maxsize=4096)  # A, B and alpha of one module share its name
def unflatten(flat: str) -> str | None:
    """The path that a name without dots stands for; None if no model of the tables has it."""
    if flat.startswith(_FLAT_TOPS):
        flat = _from_sgm(flat, "_", _FLAT_SGM, _FLAT_LEAVES) or flat
    numbers = iter(_NUMBER.findall(flat))
    path = _PATHS.get(_NUMBER.sub("#", flat))
    return None if path is None else _HOLE.sub(lambda _: next(numbers), path)


def from_original(path: str) -> str | None:
    """Our path of a module of the original SD code, itself for all other paths; None if that code has no such module."""
    if path.partition(".")[0] not in _SGM_TOPS:
        return path
    ours = _from_sgm(path, ".", _SGM, _SGM_LEAVES)
    return ours if ours and flatten(ours) else None


def _from_sgm(path: str, joint: str, table: Mapping[str, str], leaves: Mapping[str, str]) -> str | None:
    """The same module in diffusers' spelling; None if no beginning of the table fits."""
    parts = path.split(joint)
    for count in range(min(_LONGEST, len(parts)), 0, -1):
        if ours := table.get(joint.join(parts[:count])):
            rest = joint.join(parts[count:])
            return joint.join(filter(None, (ours, leaves.get(rest, rest))))
    return None
