"""A model's parts by role: loaded as asked, handed out, released."""

import gc
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from reelora.adapters import Adapter
from reelora.catalog import ModelFacts
from reelora.errors import ComponentError, ConfigError
from reelora.tensorio import expanded

from .folder import open_folder
from .origin import Dtypes, FolderOrigin, Loaded, Origin
from .part import Part
from .report import LoadReport
from .roles import PIPELINES, ROLES, check_roles
from .sat import is_sat, open_origin

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

__all__ = ["Bundle", "load_components", "open_origin_of"]

_HOOK = "_hf_hook"


def load_components(
    path_or_id: str | Path | None,
    *,
    roles: Sequence[str] | None = None,
    dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
    device: torch.device | str | None = None,
    sat_config: str | Path | Sequence[str | Path] | None = None,
    paths: Mapping[str, str | Path] | None = None,
) -> "Bundle":
    """Load the asked roles of a model from a diffusers folder, a hub id or a SAT checkpoint; nothing else is loaded or checked.

    Networks come frozen, in evaluation mode and in their stored dtype, or in ``dtype`` (one for all, or one by role).
    Their weights stay views of the mapped file unless a cast or another device needs a copy. ``paths`` overrides where a
    role comes from: a model folder, the role's own folder, or a safetensors file beside the model's config.

    A SAT checkpoint (the folder that holds ``latest``, or a bare torch file) is described by its YAML files, ``sat_config``, of
    which the later ones win; without a path it is the one that they name. Its transformer computes what SAT computes: with the
    epsilon of SAT's last norm, with stored position tables, and with the checkpoint's LoRA active, which is also ``adapter``.

    Raises ComponentError that names all roles that are missing or of a wrong class, before any is loaded, or that do
    not fit their weights; ConfigError for unknown roles and for settings of a YAML that cannot be followed, with their lines;
    AdapterError for a LoRA that contradicts the YAML; FileFormatError for bad files; OSError for missing ones.
    """
    dtypes: Dtypes = dict(dtype) if isinstance(dtype, Mapping) else dict.fromkeys(ROLES, dtype)
    check_roles(dtypes)
    _check_dtypes(dtypes)
    asked = _listed(roles)
    origin = open_origin_of(path_or_id, roles=asked, sat_config=sat_config, paths=paths)
    return Bundle(origin, asked, dtypes=dtypes, device=torch.device(device or "cpu"))


def open_origin_of(
    path_or_id: str | Path | None,
    *,
    roles: Sequence[str] | None,
    sat_config: str | Path | Sequence[str | Path] | None,
    paths: Mapping[str, str | Path] | None,
) -> Origin:
    """Where a model comes from: a SAT checkpoint if YAML or files say so, else a folder or hub id in diffusers' layout."""
    overrides = {role: expanded(path) for role, path in (paths or {}).items()}
    check_roles([*(roles or ()), *overrides])
    if sat_config is not None or path_or_id is None or is_sat(path_or_id):
        return open_origin(path_or_id, _listed(sat_config), overrides)
    root = open_folder(path_or_id, None if roles is None else set(roles) - set(overrides))
    return FolderOrigin(root=root, overrides=overrides)


class Bundle:
    """The parts of one model by role. A role that was not asked for, or was released, answers with an error."""

    def __init__(self, origin: Origin, roles: Sequence[str] | None, *, dtypes: Dtypes, device: torch.device) -> None:
        self._origin = origin
        self._dtypes = dtypes
        self._device = device
        self._released: set[str] = set()
        self._take(origin.load(roles, dtypes=dtypes, device=device))

    @property
    def root(self) -> Path:
        """The model's folder, or the SAT checkpoint."""
        return self._origin.root

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that are here now, in the order of loading."""
        return tuple(self._parts)

    @property
    def tokenizer(self) -> Any:
        return self._part("tokenizer")

    @property
    def text_encoder(self) -> Any:
        return self._part("text_encoder")

    @property
    def tokenizer_2(self) -> Any:
        return self._part("tokenizer_2")

    @property
    def text_encoder_2(self) -> Any:
        return self._part("text_encoder_2")

    @property
    def transformer(self) -> Any:
        return self._part("transformer")

    @property
    def unet(self) -> Any:
        return self._part("unet")

    @property
    def vae(self) -> Any:
        return self._part("vae")

    @property
    def scheduler(self) -> Any:
        return self._part("scheduler")

    @property
    def denoiser(self) -> str:
        """The role that denoises, ``transformer`` or ``unet``, loaded or not."""
        return "unet" if "unet" in self._parts else self._origin.denoiser

    @property
    def adapter(self) -> Adapter | None:
        """The LoRA of a SAT checkpoint, which acts on the transformer until `reelora.detach`; None where there is none."""
        return self._adapter

    @property
    def sat_sampling(self) -> Mapping[str, Any]:
        """What the YAML of a SAT checkpoint chooses for sampling (solver, steps, guidance and its schedule); else empty."""
        return self._origin.sat_sampling

    @property
    def text_roles(self) -> tuple[str, ...]:
        """The roles that make prompt states out of text, loaded or not: tokenizers, each followed by its encoder.

        Raises ComponentError for the refiner of SDXL, which has the second encoder alone.
        """
        roles = self._origin.text_roles
        if "text_encoder_2" in roles and "text_encoder" not in roles:
            raise ComponentError(
                f"{self.root} has text_encoder_2 but no text_encoder: it is the refiner of SDXL, which only finishes pictures "
                "of the base model, and is neither trained nor run here. Take the base model, "
                "stabilityai/stable-diffusion-xl-base-1.0."
            )
        return roles

    @property
    def has_zero_unconditional(self) -> bool:
        """Whether guidance leads away from zeros instead of the states of the empty prompt, as with the published SDXL."""
        return self._origin.has_zero_unconditional

    @property
    def scheduler_class(self) -> str | None:
        """The class of scheduler that the model's folder names, loaded or not; None where it names none."""
        return self._origin.scheduler_class

    @cached_property
    def facts(self) -> ModelFacts:
        """What the catalog knows of this model; read from configs alone, whichever roles are loaded."""
        return self._origin.facts(self._parts)

    def pipeline(self) -> "DiffusionPipeline":
        """The stock diffusers pipeline around these parts. Raises ComponentError for parts that it lacks."""
        import diffusers

        name = self._origin.pipeline_class
        if name not in PIPELINES:
            raise ComponentError(
                f"{self.root} is of pipeline class {name}; what can be run is {' or '.join(sorted(PIPELINES))}."
            )
        row = PIPELINES[name]
        if lacking := [role for role in row.roles if role not in self._parts]:
            raise ComponentError(f"{name} needs {', '.join(lacking)}: {self._why_absent(lacking[0])}")
        zeros = {"force_zeros_for_empty_prompt": self.has_zero_unconditional} if "text_encoder_2" in row.roles else {}
        return getattr(diffusers, name)(**{role: self._parts[role] for role in row.roles}, **row.options, **zeros)

    def load(self, *roles: str) -> None:
        """Load parts that are not here, from where the others came from. Raises as `load_components`."""
        check_roles(roles)
        if not (lacking := [role for role in roles if role not in self._parts]):
            return
        loaded = self._origin.load(lacking, dtypes=self._dtypes, device=self._device)
        parts = {**self._parts, **loaded.parts}
        others = [part for part in self.report.parts if part.role not in loaded.parts]
        notes = tuple(dict.fromkeys((*self.report.notes, *loaded.notes)))
        self._parts = {role: parts[role] for role in ROLES if role in parts}
        self._adapter = self._adapter or loaded.adapter
        self._released -= set(lacking)
        self.report = LoadReport((*others, *loaded.reports), notes)

    def load_weights(self, path: str | Path) -> None:
        """Take the weights of another SAT checkpoint of this architecture, as strictly as the first time.

        The parts stay the same objects, so that pipelines around them have the new weights; a LoRA is that of the new
        checkpoint. On any error nothing has changed. Raises what ``load_components`` raises, and ComponentError for a model in
        diffusers' layout and for parts that are offloaded.
        """
        origin = self._origin.moved(expanded(path))
        networks = {role: part for role, part in self._parts.items() if isinstance(part, nn.Module)}
        if hooked := [role for role, part in networks.items() if any(_HOOK in vars(module) for module in part.modules())]:
            raise ComponentError(f"{', '.join(hooked)}: offloaded by a pipeline; load the weights before that is enabled.")
        loaded = origin.load(list(networks), dtypes=self._dtypes, device=self._device)
        for role, part in networks.items():
            # Everything a module is stands in its dict: the object that others hold becomes the new network at once.
            vars(part).clear()
            vars(part).update(vars(loaded.parts[role]))
        self._origin, self._adapter = origin, loaded.adapter
        others = [part for part in self.report.parts if part.role not in loaded.parts]
        self.report = LoadReport((*others, *loaded.reports), loaded.notes)

    def joined(self, other: "Bundle") -> "Bundle":
        """A bundle of the parts of both, which are shared and not copied.

        Raises ConfigError where they come from different models or have a role twice.
        """
        if self.root != other.root or set(self._parts) & set(other._parts):
            raise ConfigError(f"{self!r} and {other!r} do not make one model: they must share a folder, and no role.")
        both = Bundle(self._origin, [], dtypes={**self._dtypes, **other._dtypes}, device=self._device)
        reports, notes = (*self.report.parts, *other.report.parts), (*self.report.notes, *other.report.notes)
        both._take(
            Loaded(
                parts={**self._parts, **other._parts},
                reports=reports,
                adapter=self._adapter or other._adapter,
                notes=tuple(dict.fromkeys(notes)),
            )
        )
        return both

    def find(self, *roles: str) -> Mapping[str, Part]:
        """Where roles come from and what their files hold, loaded or not; only configs and headers are read.

        Raises what `load_components` raises.
        """
        check_roles(roles)
        return self._origin.find(roles)[0]

    def release(self, *roles: str) -> None:
        """Let go of parts and give their memory back; what is not here is no error.

        Pipelines made before keep their parts alive: delete them too.
        """
        check_roles(roles)
        for role in roles:
            if self._parts.pop(role, None) is not None:
                self._released.add(role)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __repr__(self) -> str:
        return f"Bundle({str(self.root)!r}, {', '.join(self.roles) or 'empty'})"

    def _part(self, role: str) -> Any:
        if role not in self._parts:
            raise ComponentError(self._why_absent(role))
        return self._parts[role]

    def _why_absent(self, role: str) -> str:
        if role in self._released:
            return f"The {role} of {self.root} was released; load it again with load_components(..., roles=[{role!r}])."
        return f"The {role} of {self.root} was not loaded; ask for it with load_components(..., roles=[{role!r}, ...])."

    def _take(self, loaded: Loaded) -> None:
        self._parts = dict(loaded.parts)
        self._adapter = loaded.adapter
        self.report = LoadReport(loaded.reports, loaded.notes)


def _listed(values: Any) -> list[Any] | None:
    """One value or several as a list; None stays."""
    return None if values is None else [values] if isinstance(values, str | Path) else list(values)


def _check_dtypes(dtypes: Mapping[str, torch.dtype | None]) -> None:
    if wrong := [f"{role}: {dtype}" for role, dtype in dtypes.items() if dtype is not None and not dtype.is_floating_point]:
        raise ConfigError(f"Weights can only be loaded in a floating dtype, such as torch.bfloat16; not {', '.join(wrong)}.")
