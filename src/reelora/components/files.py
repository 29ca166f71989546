"""A model on the disk, described and proved to be whole, without loading it: what conversion works on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reelora.adapters import Adapter
from reelora.layouts import Cut
from reelora.tensorio import DeferredTensor, Tensors

from .bundle import open_origin_of
from .loading import load_part
from .origin import tensors_of
from .part import Part
from .sat import SatModel, SatOrigin, likely_cause
from .skeleton import build_skeleton, computed_buffers
from .weights import match_tensors

__all__ = ["ModelFiles", "RoleFiles", "open_model"]


@dataclass(frozen=True, kw_only=True)
class RoleFiles:
    """One role: what it is, and its tensors."""

    role: str
    model: Any
    """A network without memory; the tokenizer or scheduler itself."""
    tensors: Mapping[str, DeferredTensor] = field(default_factory=dict)
    """By the network's own names; of tensors that share memory, one."""
    table: DeferredTensor | None = None
    """A stored position table where the network computes its own."""
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Any:
        return self.model.config


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The asked roles of a model."""

    root: Path
    roles: Mapping[str, RoleFiles]
    pipeline_class: str
    adapter: Adapter | None
    """The LoRA of a SAT checkpoint."""
    sat: SatModel | None
    """What the YAML of a SAT checkpoint says; None for a folder in diffusers' layout."""


def open_model(
    path_or_id: str | Path | None,
    *,
    roles: Sequence[str] | None = None,
    sat_config: str | Path | Sequence[str | Path] | None = None,
    paths: Mapping[str, str | Path] | None = None,
) -> ModelFiles:
    """Find the asked roles of a model, as ``load_components`` does and as strictly; nothing is read but names and shapes.

    Raises what ``load_components`` raises.
    """
    origin = open_origin_of(path_or_id, roles=roles, sat_config=sat_config, paths=paths)
    found, adapter = origin.find(roles)
    return ModelFiles(
        root=origin.root,
        roles={role: _described(role, part) for role, part in found.items()},
        pipeline_class=origin.pipeline_class,
        adapter=adapter,
        sat=origin.model if isinstance(origin, SatOrigin) else None,
    )


def _described(role: str, part: Part) -> RoleFiles:
    tensors = part.tensors if part.tensors is not None else tensors_of(part.source)
    if tensors is None:
        return RoleFiles(role=role, model=load_part(part.source, dtype=None, device=torch.device("cpu")))
    network: Any = build_skeleton(part.source)
    hint = likely_cause(role, tensors, network.config)
    matched = match_tensors(network, tensors, part.source, hint=hint)
    return RoleFiles(
        role=role,
        model=network,
        tensors={names[0]: _deferred(tensors, key) for key, names in matched.items()},
        table=_table(network, tensors),
        cuts=part.cuts,
        left_out=part.left_out,
    )


def _table(network: nn.Module, tensors: Tensors) -> DeferredTensor | None:
    computed = [name for name in computed_buffers(network) if name in tensors]
    return _deferred(tensors, computed[0]) if computed else None


def _deferred(tensors: Tensors, key: str) -> DeferredTensor:
    return DeferredTensor(tuple(tensors.shapes[key]), tensors.dtypes[key], lambda: tensors[key])
