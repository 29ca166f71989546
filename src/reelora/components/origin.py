"""Where the parts of a bundle come from, and how they are loaded."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from reelora.adapters import Adapter
from reelora.catalog import ModelFacts, facts_for
from reelora.errors import ComponentError
from reelora.tensorio import TensorStore, open_tensors, read_json

from .folder import Source, class_in, held_roles, locate, read_index
from .loading import load_part
from .part import Part
from .report import PartReport, report_part
from .roles import ROLES, TEXT_ROLES

__all__ = ["Dtypes", "FolderOrigin", "Loaded", "Origin", "tensors_of"]

Dtypes = Mapping[str, torch.dtype | None]
"""By role; None is as stored."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Roles as they were loaded."""

    parts: Mapping[str, Any]
    reports: tuple[PartReport, ...]
    adapter: Adapter | None = None
    """What acts on the transformer since it was loaded."""
    notes: tuple[str, ...] = ()
    """What a user should know of them."""


class Origin(Protocol):
    """A model on the disk."""

    @property
    def root(self) -> Path: ...

    @property
    def denoiser(self) -> str: ...

    @property
    def pipeline_class(self) -> str: ...

    @property
    def sat_sampling(self) -> Mapping[str, Any]: ...

    @property
    def text_roles(self) -> tuple[str, ...]: ...

    @property
    def has_zero_unconditional(self) -> bool: ...

    @property
    def scheduler_class(self) -> str | None: ...

    def facts(self, parts: Mapping[str, Any]) -> ModelFacts: ...

    def find(self, roles: Sequence[str] | None) -> tuple[dict[str, Part], Adapter | None]: ...

    def load(self, roles: Sequence[str] | None, *, dtypes: Dtypes, device: torch.device) -> Loaded: ...

    def moved(self, root: Path) -> "Origin": ...


@dataclass(frozen=True, kw_only=True)
class FolderOrigin:
    """A folder in diffusers' layout."""

    root: Path
    overrides: Mapping[str, Path]

    @property
    def denoiser(self) -> str:
        """The role that denoises."""
        return "unet" if "unet" in self.overrides or (self.root / "unet").is_dir() else "transformer"

    @property
    def pipeline_class(self) -> str:
        """The stock pipeline that the folder names."""
        return str(read_index(self.root).get("_class_name"))

    @property
    def sat_sampling(self) -> Mapping[str, Any]:
        """Nothing here says how SAT would sample."""
        return {}

    @property
    def text_roles(self) -> tuple[str, ...]:
        """The roles that make prompt states out of text."""
        return tuple(role for pair in TEXT_ROLES for role in pair if role in self._named())

    @property
    def has_zero_unconditional(self) -> bool:
        """Whether guidance leads away from zeros instead of the states of the empty prompt, as with the published SDXL."""
        return bool(read_index(self.root).get("force_zeros_for_empty_prompt", False))

    @property
    def scheduler_class(self) -> str | None:
        """The class of scheduler that the folder names; None where it names none."""
        return class_in(read_index(self.root), "scheduler")

    def facts(self, parts: Mapping[str, Any]) -> ModelFacts:
        """What the catalog knows of this model; of parts that are not here, the config is read."""
        config = self._config(self.denoiser, parts)
        if config is None:
            raise ComponentError(f"{self.root} has no {self.denoiser}/config.json, which says what the model is.")
        return facts_for(config, self._config("vae", parts))

    def find(self, roles: Sequence[str] | None) -> tuple[dict[str, Part], None]:
        """The asked roles in the order of loading (all that the folder names, where none are)."""
        sources = self._locate_all(self._asked(roles))
        return {source.role: Part(source=source, tensors=tensors_of(source)) for source in sources}, None

    def load(self, roles: Sequence[str] | None, *, dtypes: Dtypes, device: torch.device) -> Loaded:
        """Load roles, all of them found before the first is loaded."""
        sources = self._locate_all(self._asked(roles))
        parts, reports = {}, []
        for source in sources:
            started = time.perf_counter()
            part = load_part(source, dtype=dtypes.get(source.role), device=device)
            parts[source.role] = part
            seconds = time.perf_counter() - started
            reports.append(report_part(part, role=source.role, source=source.weights or source.folder, seconds=seconds))
        return Loaded(parts=parts, reports=tuple(reports))

    def moved(self, root: Path) -> "FolderOrigin":
        """Only a SAT model has its architecture and its weights in two places."""
        raise ComponentError(
            f"{self.root} is a folder in diffusers' layout, which holds config and weights together: load {root} with "
            "load_components."
        )

    def _asked(self, roles: Sequence[str] | None) -> list[str]:
        """The asked roles in the order of loading; all that the folder names and we know, where none are."""
        if roles is not None:
            return [role for role in ROLES if role in roles]
        return self._named()

    def _named(self) -> list[str]:
        """The roles that the folder names, or that come from elsewhere, in the order of loading."""
        held = held_roles(read_index(self.root))
        return [role for role in ROLES if role in held or role in self.overrides]

    def _locate_all(self, roles: Sequence[str]) -> list[Source]:
        """Find every role before the first is loaded, so that all that is wrong is said at once."""
        sources, problems = [], []
        for role in roles:
            try:
                sources.append(locate(self.root, role, self.overrides.get(role)))
            except ComponentError as error:
                problems.append(str(error))
        if problems:
            raise ComponentError("\n".join(dict.fromkeys(problems)))
        return sources

    def _config(self, role: str, parts: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """A role's config: of the part if it is here, else from its file if there is one."""
        if role in parts:
            return dict(parts[role].config)
        override = self.overrides.get(role)
        folders = (override, (override or self.root) / role, self.root / role)
        files = (folder / "config.json" for folder in folders if folder)
        return next((read_json(file) for file in files if file.is_file()), None)


def tensors_of(source: Source) -> TensorStore | None:
    """The mapped weights of a role in diffusers' layout; None for one that has none."""
    return open_tensors(source.weights) if source.weights else None
