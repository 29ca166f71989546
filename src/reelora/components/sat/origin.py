"""A SAT model as the origin of a bundle: what it is, and the loading of its roles."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reelora.adapters import Adapter
from reelora.catalog import ModelFacts, facts_for
from reelora.components.folder import INDEX
from reelora.components.loading import load_part
from reelora.components.origin import Dtypes, Loaded
from reelora.components.part import Part
from reelora.components.report import report_part
from reelora.components.roles import ROLES, TEXT_ROLES
from reelora.components.skeleton import build_skeleton, computed_buffers
from reelora.components.weights import fill_network
from reelora.errors import ComponentError, ConfigError, first_few
from reelora.tensorio import Tensors, expanded, read_json

from .architecture import SatModel, read_model
from .checkpoint import find_files, is_checkpoint
from .lora import attach_adapter, read_lora
from .misfit import likely_cause
from .parts import CLASSES as SAT_PARTS
from .parts import SatSources
from .tables import TABLE

__all__ = ["SatOrigin", "is_sat", "open_origin"]

CONFIG_BESIDE = "model.yaml"
"""Read where no config is named: what ``reelora checkpoint --to sat`` writes beside ``latest``."""


@dataclass(frozen=True, kw_only=True)
class SatOrigin:
    """Where a bundle comes from: a SAT checkpoint and the YAML files that describe it."""

    root: Path
    model: SatModel
    overrides: Mapping[str, Path]
    denoiser: str = "transformer"

    @property
    def pipeline_class(self) -> str:
        """The stock pipeline of this model."""
        return self.model.pipeline_class

    @property
    def sat_sampling(self) -> Mapping[str, Any]:
        """How its YAML samples, in the words of a session's settings."""
        return self.model.sampling.settings if self.model.sampling else {}

    @property
    def text_roles(self) -> tuple[str, ...]:
        """CogVideoX has one text encoder."""
        return TEXT_ROLES[0]

    @property
    def has_zero_unconditional(self) -> bool:
        """CogVideoX's empty prompt has states of its own."""
        return False

    @property
    def scheduler_class(self) -> str | None:
        """SAT names none."""
        return None

    def facts(self, parts: Mapping[str, Any]) -> ModelFacts:
        """What the catalog knows of this model, by its YAML."""
        vae = dict(parts["vae"].config) if "vae" in parts else self._vae_config()
        return facts_for({"_class_name": "CogVideoXTransformer3DModel", **self.model.transformer}, vae)

    def load(self, roles: Sequence[str] | None, *, dtypes: Dtypes, device: torch.device) -> Loaded:
        """Load roles, all of them found before the first is loaded; nothing else is looked for.

        Raises ComponentError that names all roles that are missing or do not fit their weights, what `open_sat` raises, and
        AdapterError for a LoRA that contradicts the YAML.
        """
        found, adapter = self.find(roles)
        parts, reports = {}, []
        for role, part in found.items():
            started = time.perf_counter()
            parts[role] = _load(part, dtype=dtypes.get(role), device=device)
            if role == "transformer" and adapter and self.model.lora:
                attach_adapter(parts[role], adapter, self.model.lora)
            seconds = time.perf_counter() - started
            source = part.source.weights or part.source.folder
            reports.append(report_part(parts[role], role=role, source=source, seconds=seconds))
        notes = (*_left_out_notes(found), *self._lora_notes(found, adapter), *self._sampling_notes(found))
        return Loaded(parts=parts, reports=tuple(reports), adapter=adapter, notes=notes)

    def find(self, roles: Sequence[str] | None) -> tuple[dict[str, Part], Adapter | None]:
        """The asked roles in the order of loading (all, where none are), and the LoRA of the transformer among them."""
        sources = SatSources(self.model, self.root, self.overrides)
        found = _find_all(sources, [role for role in ROLES if (role in SAT_PARTS if roles is None else role in roles)])
        return found, self._lora(sources, found)

    def moved(self, root: Path) -> "SatOrigin":
        """The same architecture with the weights of another checkpoint."""
        find_files(root)
        return replace(self, root=root)

    def _lora(self, sources: SatSources, found: Mapping[str, Part]) -> Adapter | None:
        """The LoRA of the checkpoint, if its transformer is asked for."""
        if not self._is_of_checkpoint("transformer", found):
            return None
        if strangers := sources.checkpoint.strangers():
            raise ComponentError(
                f"{self.root}: {len(strangers)} tensors are of no part of a CogVideoX, {first_few(strangers)}. "
                "Is it another model, or was it trained with other code?"
            )
        return read_lora(sources.checkpoint, self.model)

    def _lora_notes(self, found: Mapping[str, Part], adapter: Adapter | None) -> Iterator[str]:
        if adapter:
            acts = f"the checkpoint's LoRA acts on {len(adapter.pairs)} modules of the transformer"
            yield f"{acts}, scale by {adapter.scale_source}"
        elif self.model.lora and self._is_of_checkpoint("transformer", found):
            yield "the YAML has a lora_config and the checkpoint no LoRA: this is the base alone"

    def _sampling_notes(self, found: Mapping[str, Part]) -> Iterator[str]:
        if self.model.sampling and "scheduler" in found:
            yield f"the YAML samples with {self.model.sampling}"

    def _is_of_checkpoint(self, role: str, found: Mapping[str, Part]) -> bool:
        return role in found and role not in self.overrides

    def _vae_config(self) -> Mapping[str, Any]:
        """The VAE's config, or what the YAML says of its latents where it does not describe it."""
        places = (self.overrides.get("vae"), self.model.vae_file)
        told = (place / "config.json" for place in places if place)
        beside = next((read_json(file) for file in told if file.is_file()), None)
        channels = self.model.transformer["out_channels"]
        return beside or self.model.vae or {"scaling_factor": self.model.scaling_factor, "latent_channels": channels}


def open_origin(path: str | Path | None, sat_config: Sequence[str | Path] | None, overrides: Mapping[str, Path]) -> SatOrigin:
    """The SAT model at ``path``, or where its YAML says if that is None. Reads the YAML files alone.

    Raises ConfigError where no YAML describes the checkpoint, what `read_model` and `find_files` raise.
    """
    model = read_model(sat_config or _config_beside(path))
    root = model.load if path is None else expanded(path)
    if root is None:
        raise ConfigError(f"{model.files[-1]}: names no checkpoint (args.load); pass its path.")
    find_files(root)
    return SatOrigin(root=root, model=model, overrides=overrides)


def is_sat(path: str | Path) -> bool:
    """Whether a path is a SAT checkpoint and no model folder in diffusers' layout."""
    there = expanded(path)
    return not (there / INDEX).is_file() and is_checkpoint(there)


def _config_beside(path: str | Path | None) -> list[Path]:
    beside = expanded(path or "") / CONFIG_BESIDE
    if path is None or not beside.is_file():
        what = (
            f"{path} is a SAT checkpoint, which does not say what model it is"
            if path
            else "Neither path nor sat_config is given"
        )
        raise ConfigError(f"{what}: pass its YAML files with sat_config=[...].")
    return [beside]


def _find_all(sources: SatSources, roles: Sequence[str]) -> dict[str, Part]:
    found: dict[str, Part] = {}
    problems: list[str] = []
    for role in roles:
        try:
            found[role] = sources.find(role)
        except ComponentError as error:
            problems.append(str(error))
    if problems:
        raise ComponentError("\n".join(dict.fromkeys(problems)))
    return found


def _load(part: Part, *, dtype: torch.dtype | None, device: torch.device) -> Any:
    if part.tensors is None:
        return load_part(part.source, dtype=dtype, device=device)
    network = build_skeleton(part.source)
    if part.source.role == "transformer":
        from .network import as_sat

        network = _with_table(as_sat(network), part.tensors, part.source.description)
    hint = likely_cause(part.source.role, part.tensors, part.source.config)
    return fill_network(network, part.tensors, part.source, dtype=dtype, device=device, hint=hint)


def _with_table(network: nn.Module, tensors: Tensors, described_in: str) -> nn.Module:
    """The network with the stored position table where diffusers computes one: a fine-tune in bfloat16 has it rounded."""
    if TABLE not in computed_buffers(network):
        return network
    owner: Any = network.get_submodule("patch_embed")
    wanted, stored = tuple(owner.pos_embedding.shape), tensors.shapes.get(TABLE)
    if stored != wanted:
        found = f"is {list(stored)}" if stored else "is missing"
        raise ComponentError(
            f"transformer: the stored position table {found}, {described_in} describes {list(wanted)} of text_length and the "
            "patches of all frames. Config and checkpoint must be of one model."
        )
    owner.pos_embedding = tensors[TABLE]
    return network


def _left_out_notes(found: Mapping[str, Part]) -> Iterator[str]:
    """What was not used, by reason."""
    for role, part in found.items():
        for reason in dict.fromkeys(part.left_out.values()):
            names = [name for name, given in part.left_out.items() if given == reason]
            yield f"{role}: {len(names)} tensors are not used ({reason}): {first_few(names)}"
