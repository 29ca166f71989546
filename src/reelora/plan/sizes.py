"""What a model is made of and how large each part is, from headers and configs alone."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reelora.catalog import MODELS, NETWORKS, ModelFacts
from reelora.components import Bundle, Part, Source, build_skeleton, tensors_of
from reelora.errors import ComponentError, ConfigError, nearest
from reelora.tensorio import read_json

__all__ = ["ModelSizes", "RoleSize", "catalogued", "sizes_of"]

DENOISERS = ("transformer", "unet")
NETWORK_ROLES = ("text_encoder", "text_encoder_2", *DENOISERS, "vae")
_CLASS_KEYS = ("_class_name", "architectures")
_COUNTED = "size counted from its config, for its weights are not here"


@dataclass(frozen=True, kw_only=True)
class RoleSize:
    """One network."""

    role: str
    class_name: str
    config: Mapping[str, Any]
    dtype: torch.dtype
    """As it is stored."""
    stored_bytes: int | None = None
    """Of its files; None where they are not here."""

    @cached_property
    def network(self) -> nn.Module:
        """The network without memory, which must not be changed."""
        return skeleton(self.role, self.class_name, _frozen(self.config))

    @cached_property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())

    def bytes_in(self, dtype: torch.dtype | None) -> int:
        """Bytes of weights and of tables that are computed at loading; None is as stored."""
        if dtype is None or dtype == self.dtype:
            weights = self.stored_bytes or self.num_parameters * self.dtype.itemsize
        else:
            weights = self.num_parameters * dtype.itemsize
        tables = sum(buffer.numel() for buffer in self.network.buffers() if buffer.is_floating_point())
        return weights + tables * (dtype or self.dtype).itemsize

    def is_cast(self, dtype: torch.dtype | None) -> bool:
        """Whether loading in this dtype makes a copy; else the weights stay pages of the mapped file."""
        return dtype is not None and dtype != self.dtype


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """A model by role."""

    name: str
    facts: ModelFacts
    roles: Mapping[str, RoleSize]
    notes: tuple[str, ...] = field(default=())
    """Where sizes come from, if not from the model's files."""

    @property
    def denoiser(self) -> RoleSize:
        return next(self.roles[role] for role in DENOISERS if role in self.roles)

    @property
    def text_encoders(self) -> tuple[RoleSize, ...]:
        """None for a model whose prompt states are given."""
        return tuple(size for role, size in self.roles.items() if role.startswith("text_encoder"))

    @property
    def vae(self) -> RoleSize | None:
        return self.roles.get("vae")

    def bytes_in(self, dtype: torch.dtype | None) -> int:
        """Of all parts."""
        return sum(size.bytes_in(dtype) for size in self.roles.values())


def sizes_of(described: Bundle, *, roles: Sequence[str] | None = None) -> ModelSizes:
    """Sizes of the parts of a model, loaded or not. Nothing is loaded: configs and the headers of files are read.

    ``roles`` are those that a job needs, all networks of the model if None. A part whose weights are not here (a hub id of
    which only the configs were fetched) is counted by its config, and ``notes`` says so; one that is not here at all is left
    out, with a note. Raises ComponentError where the denoiser itself is not described.
    """
    wanted = roles or [*described.text_roles[1::2], described.denoiser, "vae"]
    found, notes = {}, []
    for role in (role for role in NETWORK_ROLES if role in wanted):
        try:
            found[role] = _measured(described.find(role)[role])
        except ComponentError as error:
            counted = _counted(described.root, role, described.facts.dtype)
            if counted is None and role in DENOISERS:
                raise
            notes.append(f"{role}: {_COUNTED if counted else f'left out ({error})'}")
            found |= {role: counted} if counted else {}
    return ModelSizes(name=described.facts.name, facts=described.facts, roles=found, notes=tuple(notes))


def catalogued(hub_id: str) -> ModelSizes | None:
    """A published model by its hub id or name, without its files; None where the catalog has none of it.

    Raises ConfigError for a name that no folder and no hub can have and that is near to none.
    """
    rows = {key.lower(): row for row in MODELS for key in (row.hub_id, row.name) if row.name in NETWORKS}
    row = rows.get(hub_id.lower())
    if row is None:
        if "/" not in hub_id and not Path(hub_id).exists():
            raise ConfigError(f"There is no model {hub_id!r}: {nearest(hub_id.lower(), rows)}")
        return None
    roles = {
        role: RoleSize(role=role, class_name=name, config=config, dtype=row.dtype)
        for role, (name, config) in NETWORKS[row.name].items()
    }
    return ModelSizes(name=row.name, facts=row, roles=roles, notes=("sizes are those of the catalog: no file was read",))


def _measured(part: Part) -> RoleSize:
    source = part.source
    tensors = part.tensors if part.tensors is not None else tensors_of(source)
    assert tensors is not None, "a network has weights"
    by_dtype: Counter[torch.dtype] = Counter()
    for name, shape in tensors.shapes.items():
        by_dtype[tensors.dtypes[name]] += prod(shape) * tensors.dtypes[name].itemsize
    return RoleSize(
        role=source.role,
        class_name=source.class_name,
        config=source.config,
        dtype=by_dtype.most_common(1)[0][0],
        stored_bytes=by_dtype.total(),
    )


def _counted(root: Path, role: str, dtype: torch.dtype) -> RoleSize | None:
    """A role of which only the config is here."""
    file = root / role / "config.json"
    if not file.is_file():
        return None
    config = read_json(file)
    name = next((config[key] for key in _CLASS_KEYS if config.get(key)), "")
    return RoleSize(role=role, class_name=name[0] if isinstance(name, list) else name, config=config, dtype=dtype)


def _frozen(config: Mapping[str, Any]) -> str:
    return json.dumps(dict(config), sort_keys=True, default=list)


@lru_cache(maxsize=16)
def skeleton(role: str, class_name: str, config: str) -> nn.Module:
    """The network of a config (JSON), without memory."""
    source = Source(role=role, class_name=class_name, folder=Path(role), config=json.loads(config), described_in="the catalog")
    return build_skeleton(source).eval()
