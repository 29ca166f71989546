"""The plan of a SAT checkpoint with the YAML that describes it."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from reelora.components import (
    TABLE,
    ModelFiles,
    RoleFiles,
    rebuilt_tables,
    sat_settings,
    transformer_obstacles,
    vae_obstacles,
)
from reelora.errors import ConfigError, first_few
from reelora.layouts import SAT_ROLES, Join, Shards, sat_names
from reelora.tensorio import SAT_TRACKER, DeferredTensor, cat_apart

from .plan import KeyRow, Plan, TensorFile, WriteSmall
from .values import cast, merged_names, origin_of, unused_rows, values_of

__all__ = ["MODEL_YAML", "plan_sat"]

MODEL_YAML = "model.yaml"
ITERATION = "1"
VAE_FILE, VAE_FOLDER, TEXT_FOLDER = Path("vae/3d-vae.pt"), Path("vae"), Path("t5-v1_1-xxl")
DEAD_POSITIONS = 64
"""What every published config has as max_sequence_length."""


def plan_sat(model: ModelFiles, output: Path, *, dtype: torch.dtype | None, merges: bool, mp: int) -> Plan:
    """A folder with ``latest``, its shards and `MODEL_YAML`; T5 in its own folder and the VAE in its own file below.

    Raises ConfigError for what SAT cannot compute, and for a transformer that does not divide into ``mp`` shards.
    """
    _check(model, mp)
    files: list[TensorFile] = []
    small: dict[Path, WriteSmall] = {}
    rows: list[KeyRow] = []
    for role, part in model.roles.items():
        values = values_of(model, role, dtype=dtype, merges=merges)
        if role == "transformer":
            theirs, made = _transformer(model, part, values, dtype, merges)
            files += _shards(theirs, mp)
            rows += made
        elif role == "vae" and not vae_obstacles(part.config):
            theirs, made = _vae(part, values)
            files.append(TensorFile(place=VAE_FILE, tensors=theirs, root="state_dict"))
            rows += made
        elif role in _FOLDERS:
            files += _in_our_layout(part, values)
            small[_FOLDERS[role]] = _both(small.get(_FOLDERS[role]), _config_writer(part, values))
            rows += [KeyRow(name=f"{role}.{name}", sources=(f"{role}.{name}",), how="copy") for name in values]
    if "transformer" in model.roles:
        small[Path()] = partial(_write_tracker, model, mp)
    return Plan(output=output, files=files, small=small, rows=(*rows, *unused_rows(model)), notes=tuple(_notes(model)))


_FOLDERS: Mapping[str, Path] = {"vae": VAE_FOLDER, "text_encoder": TEXT_FOLDER, "tokenizer": TEXT_FOLDER}


def _check(model: ModelFiles, mp: int) -> None:
    transformer, scheduler = model.roles.get("transformer"), model.roles.get("scheduler")
    if transformer is None:
        return
    if scheduler is None:
        raise ConfigError("A SAT config holds the noise schedule too: convert the scheduler together with the transformer.")
    if problems := transformer_obstacles(transformer.config, scheduler.config):
        raise ConfigError(f"{model.root}: SAT cannot compute this model: {'; '.join(problems)}.")
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    if transformer.config.num_attention_heads % mp or width % mp:
        raise ConfigError(f"{transformer.config.num_attention_heads} heads do not divide into {mp} shards.")


def _transformer(
    model: ModelFiles, part: RoleFiles, values: Mapping[str, DeferredTensor], dtype: torch.dtype | None, merges: bool
) -> tuple[dict[str, DeferredTensor], list[KeyRow]]:
    """Their tensors without prefix, and what became of every one."""
    held = dict(values) | ({TABLE: cast(part.table, dtype)} if part.table else {})
    writing = sat_names("transformer").write(held)
    assert not writing.strangers, first_few(writing.strangers)
    stored = {key: _joined(held, join) for key, join in writing.joins.items()}
    stored_in = dtype or next(iter(values.values())).dtype
    made = rebuilt_tables(part.model, stored_in, num_dead_positions=_num_dead(model))
    made = {key: table for key, table in made.items() if key not in stored}
    merged = merged_names(model, merges=merges)
    rows = [_row(part, key, join, merged) for key, join in writing.joins.items()]
    rows += [KeyRow(name=f"transformer.{key}", sources=(), how=_why_made(key)) for key in made]
    return stored | made, rows


def _num_dead(model: ModelFiles) -> int:
    return model.sat.num_dead_positions if model.sat else DEAD_POSITIONS


def _why_made(key: str) -> str:
    return "zeros: nothing reads it" if "position_embeddings" in key else "computed from the config"


def _row(part: RoleFiles, key: str, join: Join, merged: set[str]) -> KeyRow:
    sources = [origin_of(part, name, is_merged=False)[0] for name in join.names]
    how = "copy" if len(join.names) == 1 else f"{len(join.names)} tensors along the rows"
    how += " with the LoRA merged in" if merged & set(join.names) else ""
    return KeyRow(name=f"{part.role}.{key}", sources=tuple(dict.fromkeys(source for (source,) in sources)), how=how)


def _vae(part: RoleFiles, values: Mapping[str, DeferredTensor]) -> tuple[dict[str, DeferredTensor], list[KeyRow]]:
    writing = sat_names("vae", num_levels=len(part.config.block_out_channels)).write(values)
    assert not writing.strangers, first_few(writing.strangers)
    rows = [_row(part, key, join, set()) for key, join in writing.joins.items()]
    return {key: _joined(values, join) for key, join in writing.joins.items()}, rows


def _joined(values: Mapping[str, DeferredTensor], join: Join) -> DeferredTensor:
    """One of their tensors, made of ours."""
    parts = [values[name] for name in join.names]
    if join.num_chunks == 1:
        return parts[0]
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return DeferredTensor(shape, parts[0].dtype, lambda: join_tensors([part.compute() for part in parts], join))


def join_tensors(parts: list[Tensor], join: Join) -> Tensor:
    """The parts of our tensors in their order."""
    pieces: dict[int, Tensor] = {}
    for part, places in zip(parts, join.chunks, strict=True):
        pieces |= dict(zip(places, part.chunk(len(places)), strict=True))
    return cat_apart([pieces[place] for place in range(join.num_chunks)])


def _shards(tensors: Mapping[str, DeferredTensor], mp: int) -> list[TensorFile]:
    names = sat_names("transformer")
    return [
        TensorFile(
            place=Path(ITERATION) / f"mp_rank_{rank:02d}_model_states.pt",
            tensors={
                SAT_ROLES["transformer"] + key: _shard(tensor, names.shards(key), rank, mp) for key, tensor in tensors.items()
            },
            root="module",
        )
        for rank in range(mp)
    ]


def _shard(tensor: DeferredTensor, place: Shards, rank: int, mp: int) -> DeferredTensor:
    """The part of a tensor that one of ``mp`` ranks holds."""
    if place == "same" or mp == 1:
        return tensor
    axis = 1 if place == "columns" else 0
    shape = tuple(size // mp if index == axis else size for index, size in enumerate(tensor.shape))
    return DeferredTensor(shape, tensor.dtype, lambda: shard_tensor(tensor.compute(), place, rank, mp))


def shard_tensor(tensor: Tensor, place: Shards, rank: int, mp: int) -> Tensor:
    """The inverse of merging shards: a part of the rows, of the rows of each third, or of the columns."""
    if place == "thirds":
        return cat_apart([third.chunk(mp)[rank] for third in tensor.chunk(3)])
    return tensor.chunk(mp, dim=1 if place == "columns" else 0)[rank].contiguous()


def _in_our_layout(part: RoleFiles, values: Mapping[str, DeferredTensor]) -> list[TensorFile]:
    """The weights of a part that SAT takes, or that can only be had, in the layout of diffusers or transformers."""
    stem = "model" if part.role == "text_encoder" else "diffusion_pytorch_model"
    return [TensorFile(place=_FOLDERS[part.role] / f"{stem}.safetensors", tensors=values)] if values else []


def _config_writer(part: RoleFiles, values: Mapping[str, DeferredTensor]) -> WriteSmall:
    if part.role == "tokenizer":
        return part.model.save_pretrained
    if part.role == "vae":
        return part.model.save_config
    part.config.architectures = [type(part.model).__name__]
    part.config.dtype = next(iter(values.values())).dtype
    return part.config.save_pretrained


def _both(first: WriteSmall | None, second: WriteSmall) -> WriteSmall:
    def write(folder: Path) -> None:
        if first:
            first(folder)
        second(folder)

    return write


def _write_tracker(model: ModelFiles, mp: int, folder: Path) -> None:
    import yaml

    (folder / SAT_TRACKER).write_text(ITERATION)
    config = {"model_class": "SATVideoDiffusionEngine", "model_parallel_size": mp}
    (folder / "model_config.json").write_text(json.dumps(config, indent=4))
    (folder / MODEL_YAML).write_text(yaml.safe_dump(_settings(model), sort_keys=False, allow_unicode=True))


def _settings(model: ModelFiles) -> dict[str, object]:
    vae = model.roles.get("vae")
    return sat_settings(
        model.roles["transformer"].config,
        model.roles["scheduler"].config,
        vae=vae.config if vae else None,
        vae_path=_vae_path(vae),
        text_folder=str(TEXT_FOLDER) if {"text_encoder", "tokenizer"} & set(model.roles) else "",
        num_dead_positions=_num_dead(model),
    )


def _vae_path(vae: RoleFiles | None) -> str:
    if vae is None:
        return ""
    return str(VAE_FOLDER if vae_obstacles(vae.config) else VAE_FILE)


def _notes(model: ModelFiles) -> Iterator[str]:
    if "transformer" in model.roles and model.sat is None:
        yield "SAT has the epsilon 1e-6 in its last norm, diffusers 1e-5: outputs of order 3 differ by about 2e-5."
    vae = model.roles.get("vae")
    if vae and (obstacles := vae_obstacles(vae.config)):
        yield (
            f"The VAE stays in diffusers' layout, which Reelora reads from the YAML and SAT does not: {'; '.join(obstacles)}."
        )
