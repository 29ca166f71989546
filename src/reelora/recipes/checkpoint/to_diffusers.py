"""The plan of a folder in diffusers' layout."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reelora.components import FINAL_NORM_EPS, TABLE, ModelFiles, RoleFiles, rebuilt_tables
from reelora.tensorio import DeferredTensor

from .plan import KeyRow, Plan, TensorFile, WriteSmall
from .values import cast, merged_names, origin_of, unused_rows, values_of

__all__ = ["plan_diffusers"]

LIBRARIES = {"tokenizer": "transformers", "text_encoder": "transformers"}
STEMS = {"text_encoder": "model"}
_BLOCK_ROWS = 1024


def plan_diffusers(model: ModelFiles, output: Path, *, dtype: torch.dtype | None, merges: bool) -> Plan:
    """A pipeline's folder of all roles; the folder of one role, where there is one."""
    is_whole = len(model.roles) > 1
    folders = {role: Path(role) if is_whole else Path() for role in model.roles}
    files = [
        TensorFile(
            place=folders[role] / f"{STEMS.get(role, 'diffusion_pytorch_model')}.safetensors",
            tensors=values_of(model, role, dtype=dtype, merges=merges),
        )
        for role, part in model.roles.items()
        if part.tensors
    ]
    small: dict[Path, WriteSmall] = {folders[role]: _writer(part, dtype) for role, part in model.roles.items()}
    if is_whole:
        small[Path()] = partial(_write_index, model)
    return Plan(
        output=output,
        files=files,
        small=small,
        rows=(*_rows(model, merges), *unused_rows(model), *_table_rows(model)),
        notes=tuple(_notes(model, dtype)),
    )


def _writer(part: RoleFiles, dtype: torch.dtype | None) -> WriteSmall:
    """How a role writes what it has besides weights."""
    if part.role == "tokenizer":
        return part.model.save_pretrained
    if part.role != "text_encoder":
        return part.model.save_config
    config: Any = part.model.config
    config.architectures = [type(part.model).__name__]
    config.dtype = dtype or next(iter(part.tensors.values())).dtype
    return config.save_pretrained


def _write_index(model: ModelFiles, folder: Path) -> None:
    import diffusers

    index = {"_class_name": model.pipeline_class, "_diffusers_version": diffusers.__version__}
    parts = {role: [LIBRARIES.get(role, "diffusers"), type(part.model).__name__] for role, part in model.roles.items()}
    (folder / "model_index.json").write_text(json.dumps({**index, **parts}, indent=2) + "\n")


def _rows(model: ModelFiles, merges: bool) -> Iterator[KeyRow]:
    merged = merged_names(model, merges=merges)
    for role, part in model.roles.items():
        for name in part.tensors:
            sources, how = origin_of(part, name, is_merged=role == "transformer" and name in merged)
            yield KeyRow(name=f"{role}.{name}", sources=sources, how=how)


def _table_rows(model: ModelFiles) -> Iterator[KeyRow]:
    part = model.roles.get("transformer")
    if part and part.table:
        sources, _ = origin_of(part, TABLE, is_merged=False)
        yield KeyRow(name="", sources=sources, how="left out: diffusers computes this position table")


def _notes(model: ModelFiles, dtype: torch.dtype | None) -> Iterator[str]:
    """What stock diffusers computes otherwise than SAT with the same weights."""
    part = model.roles.get("transformer")
    if part is None or model.sat is None:
        return
    yield (
        f"Stock diffusers has the epsilon {part.config.norm_eps:g} in its last norm, SAT {FINAL_NORM_EPS:g}: outputs of order "
        "3 differ by about 2e-5."
    )
    if part.config.use_learned_positional_embeddings:
        yield (
            "Stock diffusers computes a table of sines for clips of fewer frames than the model's, where SAT takes a slice of "
            "the learned one: outputs of such clips are wrong there."
        )
    if part.table:
        difference = _largest_difference(part, cast(part.table, dtype))
        yield f"Stock diffusers computes the position table anew; it differs from the stored one by at most {difference:.1e}."


def _largest_difference(part: RoleFiles, stored: DeferredTensor) -> float:
    """Of the stored position table from the one that diffusers computes in float32, block by block."""
    (rebuilt,) = rebuilt_tables(part.model, torch.float32, num_dead_positions=1).values()
    pairs = zip(stored.compute()[0].split(_BLOCK_ROWS), rebuilt.compute()[0].split(_BLOCK_ROWS), strict=True)
    return max(float((mine.float() - theirs).abs().max()) for mine, theirs in pairs)
