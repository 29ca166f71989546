"""SwissArmyTransformer's names of a whole CogVideoX: every tensor of transformer, text encoder and VAE, both ways.

Source: CogVideo, sat/dit_video_concat.py at db498073 (1.0) and 7a1af71 (1.5), sat/vae_modules/cp_enc_dec.py, and its
tools/convert_weight_sat2hf.py; SwissArmyTransformer 0.4.12, sat/mpu/layers.py for the shards.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

__all__ = ["SAT_ROLES", "Cut", "Join", "SatNames", "SatReading", "SatWriting", "Shards", "adapter_keys", "sat_names"]

Shards = Literal["same", "rows", "thirds", "columns"]
"""How model parallelism splits a tensor: every shard has it whole, or a part of the rows, of the rows of each of three parts
(query, key, value), or of the columns."""


@dataclass(frozen=True, slots=True)
class Cut:
    """One of our tensors as parts of one of theirs: these chunks of ``num_chunks`` equal ones along the rows."""

    key: str
    chunks: tuple[int, ...] = (0,)
    num_chunks: int = 1


@dataclass(frozen=True, slots=True)
class Join:
    """One of their tensors, put together of ours: each chunk along the rows is a part of one of ``names``."""

    names: tuple[str, ...]
    chunks: tuple[tuple[int, ...], ...] = ((0,),)
    """Of each of our tensors, where its equal parts go."""

    @property
    def num_chunks(self) -> int:
        return sum(map(len, self.chunks))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One kind of tensor: their name and our names, with holes such as ``{n}`` for the number of a layer."""

    sat: str
    ours: tuple[str, ...]
    chunks: tuple[tuple[int, ...], ...] = ((0,),)
    shards: Shards = "same"


def _linear(sat: str, *ours: str, chunks: tuple[tuple[int, ...], ...] = ((0,),), weight: Shards, bias: Shards) -> list[Rule]:
    splits: dict[str, Shards] = {"weight": weight, "bias": bias}
    return [
        Rule(sat=f"{sat}.{leaf}", ours=tuple(f"{name}.{leaf}" for name in ours), chunks=chunks, shards=shards)
        for leaf, shards in splits.items()
    ]


def _same(*pairs: tuple[str, str]) -> list[Rule]:
    return [Rule(sat=sat, ours=(ours,)) for sat, ours in pairs]


_LAYER, _BLOCK, _ADALN = "transformer.layers.{n}", "transformer_blocks.{n}", "mixins.adaln_layer"
_THIRDS = ((0,), (1,), (2,))
_VIDEO_AND_TEXT = ((0, 1, 2, 6, 7, 8), (3, 4, 5, 9, 10, 11))
"""Twelve modulations: shift, scale and gate of attention and of the MLP for video, then the same for text."""

_TRANSFORMER: tuple[Rule, ...] = (
    *_same(
        ("mixins.pos_embed.pos_embedding", "patch_embed.pos_embedding"),
        ("mixins.patch_embed.proj.{leaf}", "patch_embed.proj.{leaf}"),
        ("mixins.patch_embed.text_proj.{leaf}", "patch_embed.text_proj.{leaf}"),
    ),
    Rule(
        sat=f"{_ADALN}.adaLN_modulations.{{n}}.1.{{leaf}}",
        ours=(f"{_BLOCK}.norm1.linear.{{leaf}}", f"{_BLOCK}.norm2.linear.{{leaf}}"),
        chunks=_VIDEO_AND_TEXT,
    ),
    *_same(
        (f"{_ADALN}.query_layernorm_list.{{n}}.{{leaf}}", f"{_BLOCK}.attn1.norm_q.{{leaf}}"),
        (f"{_ADALN}.key_layernorm_list.{{n}}.{{leaf}}", f"{_BLOCK}.attn1.norm_k.{{leaf}}"),
        ("mixins.final_layer.norm_final.{leaf}", "norm_out.norm.{leaf}"),
        ("mixins.final_layer.linear.{leaf}", "proj_out.{leaf}"),
        ("mixins.final_layer.adaLN_modulation.1.{leaf}", "norm_out.linear.{leaf}"),
        (f"{_LAYER}.input_layernorm.{{leaf}}", f"{_BLOCK}.norm1.norm.{{leaf}}"),
        (f"{_LAYER}.post_attention_layernorm.{{leaf}}", f"{_BLOCK}.norm2.norm.{{leaf}}"),
    ),
    *_linear(
        f"{_LAYER}.attention.query_key_value",
        *(f"{_BLOCK}.attn1.to_{leaf}" for leaf in "qkv"),
        chunks=_THIRDS,
        weight="thirds",
        bias="thirds",
    ),
    *_linear(f"{_LAYER}.attention.dense", f"{_BLOCK}.attn1.to_out.0", weight="columns", bias="same"),
    *_linear(f"{_LAYER}.mlp.dense_h_to_4h", f"{_BLOCK}.ff.net.0.proj", weight="rows", bias="rows"),
    *_linear(f"{_LAYER}.mlp.dense_4h_to_h", f"{_BLOCK}.ff.net.2", weight="columns", bias="same"),
    *_same(
        ("transformer.final_layernorm.{leaf}", "norm_final.{leaf}"),
        ("time_embed.0.{leaf}", "time_embedding.linear_1.{leaf}"),
        ("time_embed.2.{leaf}", "time_embedding.linear_2.{leaf}"),
        ("ofs_embed.0.{leaf}", "ofs_embedding.linear_1.{leaf}"),
        ("ofs_embed.2.{leaf}", "ofs_embedding.linear_2.{leaf}"),
    ),
)
_TEXT_ENCODER = tuple(_same(("{rest}", "{rest}")))
_VAE: tuple[Rule, ...] = tuple(
    _same(
        ("{side}.conv_{end}.conv.{leaf}", "{side}.conv_{end}.conv.{leaf}"),
        ("{side}.norm_out.{norm}{leaf}", "{side}.norm_out.{norm}{leaf}"),
        ("{side}.mid.block_1.{block}{leaf}", "{side}.mid_block.resnets.0.{block}{leaf}"),
        ("{side}.mid.block_2.{block}{leaf}", "{side}.mid_block.resnets.1.{block}{leaf}"),
        ("encoder.down.{n}.block.{m}.{block}{leaf}", "encoder.down_blocks.{n}.resnets.{m}.{block}{leaf}"),
        ("encoder.down.{n}.block.{m}.nin_shortcut.{leaf}", "encoder.down_blocks.{n}.resnets.{m}.conv_shortcut.{leaf}"),
        ("encoder.down.{n}.downsample.conv.{leaf}", "encoder.down_blocks.{n}.downsamplers.0.conv.{leaf}"),
        ("decoder.up.{up}.block.{m}.{block}{leaf}", "decoder.up_blocks.{up}.resnets.{m}.{block}{leaf}"),
        ("decoder.up.{up}.block.{m}.nin_shortcut.{leaf}", "decoder.up_blocks.{up}.resnets.{m}.conv_shortcut.{leaf}"),
        ("decoder.up.{up}.upsample.conv.{leaf}", "decoder.up_blocks.{up}.upsamplers.0.conv.{leaf}"),
    )
)
_HOLES: Mapping[str, str] = {
    "n": "0|[1-9][0-9]{0,3}",
    "m": "0|[1-9][0-9]{0,3}",
    "up": "0|[1-9][0-9]{0,3}",
    "leaf": "weight|bias",
    "side": "encoder|decoder",
    "end": "in|out",
    "norm": r"(?:norm_layer\.|conv_[yb]\.conv\.)?",
    "block": r"norm[12]\.(?:norm_layer\.|conv_[yb]\.conv\.)?|conv[12]\.conv\.",
    "rest": r"[\w.]+",
}
_MIRRORED = "up"
"""SAT numbers the levels of the decoder from the last one, diffusers from the first."""

_FREQUENCIES = "a rotary table: computed from the size of the clip"
_DEAD = "a position table that nothing reads"
_LEFT_OUT: Mapping[str, Mapping[str, str]] = {
    "transformer": {
        r"mixins\.pos_embed\.freqs_(sin|cos)": _FREQUENCIES,
        r"transformer\.position_embeddings\.weight": _DEAD,
    },
    "text_encoder": {},
    "vae": {r"loss\..+": "the loss that the VAE was trained with"},
}
"""Patterns of the names that may be ignored, and why."""

SAT_ROLES: Mapping[str, str] = {
    "transformer": "model.diffusion_model.",
    "text_encoder": "conditioner.embedders.0.transformer.",
    "vae": "first_stage_model.",
}
"""What stands before the names of a role in a whole checkpoint."""

_RULES: Mapping[str, tuple[Rule, ...]] = {"transformer": _TRANSFORMER, "text_encoder": _TEXT_ENCODER, "vae": _VAE}
_ORIGINAL = re.compile(r"(\.attention\.(?:query_key_value|dense))\.original\.(weight|bias)")
_ADAPTER = re.compile(r"\.attention\.(?:query_key_value|dense)\.matrix_[AB]\.[0-9]$")


@dataclass(frozen=True, kw_only=True)
class SatReading:
    """Every name of a file explained."""

    cuts: Mapping[str, Cut]
    """Our names and where their values come from."""
    left_out: Mapping[str, str]
    """Names that may be ignored, and why."""
    strangers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SatWriting:
    """Every one of our names in their words."""

    joins: Mapping[str, Join]
    strangers: tuple[str, ...]
    """Our names that SAT has no place for, or has only together with others that are missing."""


@dataclass(frozen=True)
class SatNames:
    """The grammar of one role, without the prefix that it has in a whole checkpoint."""

    rules: Sequence[Rule]
    left_out: Mapping[str, str] = field(default_factory=dict)
    num_levels: int = 0
    """Of the decoder of a VAE."""

    def read(self, keys: Iterable[str]) -> SatReading:
        """Where our tensors come from; LoRA matrices are no part of the model and have to be taken out before."""
        cuts: dict[str, Cut] = {}
        left_out: dict[str, str] = {}
        strangers: list[str] = []
        for key in keys:
            found = self._parse(key)
            if found and cuts.keys().isdisjoint(found[1]):
                rule, names = found
                parts = zip(names, rule.chunks, strict=True)
                cuts |= {name: Cut(key, chunks, sum(map(len, rule.chunks))) for name, chunks in parts}
            elif reason := self._reason(key):
                left_out[key] = reason
            else:
                strangers.append(key)
        return SatReading(cuts=cuts, left_out=left_out, strangers=tuple(strangers))

    def write(self, names: Iterable[str]) -> SatWriting:
        """How their tensors are put together of ours."""
        names = list(dict.fromkeys(names))
        held = set(names)
        joins: dict[str, Join] = {}
        strangers: list[str] = []
        for name in names:
            found = self._spell(name)
            if found is None or not held.issuperset(found[1].names):
                strangers.append(name)
            else:
                joins[found[0]] = found[1]
        return SatWriting(joins=joins, strangers=tuple(strangers))

    def shards(self, key: str) -> Shards:
        """How model parallelism splits one of their tensors."""
        found = self._parse(key)
        return found[0].shards if found else "same"

    def _parse(self, key: str) -> tuple[Rule, tuple[str, ...]] | None:
        plain = _ORIGINAL.sub(r"\1.\2", key)
        for rule, pattern in self._their_patterns:
            if match := pattern.fullmatch(plain):
                return rule, tuple(name.format(**self._mirrored(match.groupdict())) for name in rule.ours)
        return None

    def _spell(self, name: str) -> tuple[str, Join] | None:
        for rule, pattern in self._our_patterns:
            if match := pattern.fullmatch(name):
                holes = match.groupdict()
                return rule.sat.format(**self._mirrored(holes)), Join(
                    tuple(ours.format(**holes) for ours in rule.ours), rule.chunks
                )
        return None

    def _reason(self, key: str) -> str | None:
        return next((reason for pattern, reason in self.left_out.items() if re.fullmatch(pattern, key)), None)

    def _mirrored(self, holes: dict[str, str]) -> dict[str, str]:
        if _MIRRORED not in holes:
            return holes
        return holes | {_MIRRORED: str(self.num_levels - 1 - int(holes[_MIRRORED]))}

    @cached_property
    def _their_patterns(self) -> list[tuple[Rule, re.Pattern[str]]]:
        return [(rule, _pattern(rule.sat)) for rule in self.rules]

    @cached_property
    def _our_patterns(self) -> list[tuple[Rule, re.Pattern[str]]]:
        return [(rule, _pattern(name)) for rule in self.rules for name in rule.ours]


def sat_names(role: str, *, num_levels: int = 0) -> SatNames:
    """The names of a role: transformer, text_encoder, or vae with so many levels."""
    return SatNames(_RULES[role], _LEFT_OUT[role], num_levels)


def adapter_keys(keys: Iterable[str]) -> list[str]:
    """The LoRA matrices among their names."""
    return [key for key in keys if _ADAPTER.search(key)]


def _pattern(template: str) -> re.Pattern[str]:
    """A template as a regular expression; a hole that stands twice has the same value in both places."""
    text, seen = "", set[str]()
    for literal, hole in re.findall(r"([^{]*)(?:\{(\w+)\})?", template):
        text += re.escape(literal)
        if hole:
            text += f"(?P={hole})" if hole in seen else f"(?P<{hole}>{_HOLES[hole]})"
            seen.add(hole)
    return re.compile(text)
