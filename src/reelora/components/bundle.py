"""A model's parts by role: loaded as asked, handed out, released."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reelora.catalog import ModelFacts, facts_for
from reelora.errors import ComponentError, ConfigError
from reelora.tensorio import read_json

from .folder import Source, locate, open_folder, read_index
from .report import LoadReport, PartReport, report_part
from .roles import PIPELINES, ROLES, check_roles
from .weights import load_network

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

__all__ = ["Bundle", "load_components"]


def load_components(
    path_or_id: str | Path,
    *,
    roles: Sequence[str] | None = None,
    dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
    device: torch.device | str | None = None,
    paths: Mapping[str, str | Path] | None = None,
) -> "Bundle":
    """Load the asked roles of a model from a diffusers folder or a hub id; nothing else is loaded or checked.

    Networks come frozen, in evaluation mode and in their stored dtype, or in ``dtype`` (one for all, or one by role).
    Their weights stay views of the mapped file unless a cast or another device needs a copy. ``paths`` overrides where a
    role comes from: a model folder, the role's own folder, or a safetensors file beside the model's config.

    Raises ComponentError that names all roles that are missing or of a wrong class, before any is loaded, or that do
    not fit their weights; ConfigError for unknown roles; FileFormatError for bad files; OSError for missing ones.
    """
    roles = None if roles is None else [roles] if isinstance(roles, str) else list(roles)
    dtypes: dict[str, torch.dtype | None] = dict(dtype) if isinstance(dtype, Mapping) else dict.fromkeys(ROLES, dtype)
    overrides = {role: Path(path).expanduser() for role, path in (paths or {}).items()}
    check_roles([*(roles or ()), *dtypes, *overrides])
    _check_dtypes(dtypes)
    root = open_folder(path_or_id, None if roles is None else set(roles) - set(overrides))
    sources = _locate_all(root, _asked(root, roles, overrides), overrides)
    place = torch.device(device or "cpu")
    loaded = {source.role: _load(source, dtype=dtypes.get(source.role), device=place) for source in sources}
    parts = {role: part for role, (part, _) in loaded.items()}
    return Bundle(root, parts, LoadReport(tuple(report for _, report in loaded.values())), overrides)


class Bundle:
    """The parts of one model by role. A role that was not asked for, or was released, answers with an error."""

    def __init__(self, root: Path, parts: dict[str, Any], report: LoadReport, overrides: Mapping[str, Path]) -> None:
        self.root = root
        self.report = report
        self._parts = parts
        self._overrides = dict(overrides)
        self._released: set[str] = set()

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
        has_unet = "unet" in self._parts or "unet" in self._overrides or (self.root / "unet").is_dir()
        return "unet" if has_unet else "transformer"

    @cached_property
    def facts(self) -> ModelFacts:
        """What the catalog knows of this model; read from configs alone, whichever roles are loaded."""
        config = self._config(self.denoiser)
        if config is None:
            raise ComponentError(f"{self.root} has no {self.denoiser}/config.json, which says what the model is.")
        return facts_for(config, self._config("vae"))

    def pipeline(self) -> "DiffusionPipeline":
        """The stock diffusers pipeline around these parts. Raises ComponentError for parts that it lacks."""
        import diffusers

        name = read_index(self.root).get("_class_name")
        if name not in PIPELINES:
            raise ComponentError(
                f"{self.root} is of pipeline class {name}; what can be run is {' or '.join(sorted(PIPELINES))}."
            )
        needed = [role for role in ROLES if role != "unet"]
        if lacking := [role for role in needed if role not in self._parts]:
            raise ComponentError(f"{name} needs {', '.join(lacking)}: {self._why_absent(lacking[0])}")
        return getattr(diffusers, name)(**{role: self._parts[role] for role in needed})

    def joined(self, other: "Bundle") -> "Bundle":
        """A bundle of the parts of both, which are shared and not copied.

        Raises ConfigError where they come from different models or have a role twice.
        """
        if self.root != other.root or set(self._parts) & set(other._parts):
            raise ConfigError(f"{self!r} and {other!r} do not make one model: they must share a folder, and no role.")
        report = LoadReport((*self.report.parts, *other.report.parts))
        return Bundle(self.root, {**self._parts, **other._parts}, report, {**self._overrides, **other._overrides})

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

    def _config(self, role: str) -> Mapping[str, Any] | None:
        """A role's config: of the part if it is here, else from its file if there is one."""
        if role in self._parts:
            return dict(self._parts[role].config)
        folders = (self._overrides.get(role), self._overrides.get(role, self.root) / role, self.root / role)
        files = (folder / "config.json" for folder in folders if folder)
        return next((read_json(file) for file in files if file.is_file()), None)


def _check_dtypes(dtypes: Mapping[str, torch.dtype | None]) -> None:
    if wrong := [f"{role}: {dtype}" for role, dtype in dtypes.items() if dtype is not None and not dtype.is_floating_point]:
        raise ConfigError(f"Weights can only be loaded in a floating dtype, such as torch.bfloat16; not {', '.join(wrong)}.")


def _asked(root: Path, roles: Sequence[str] | None, overrides: Mapping[str, Path]) -> list[str]:
    """The asked roles in the order of loading; all that the folder names and we know, where none are."""
    if roles is not None:
        return [role for role in ROLES if role in roles]
    index = read_index(root)
    return [role for role in ROLES if index.get(role, [None, None]) != [None, None] or role in overrides]


def _locate_all(root: Path, roles: Sequence[str], overrides: Mapping[str, Path]) -> list[Source]:
    """Find every role before the first is loaded, so that all that is wrong is said at once."""
    sources, problems = [], []
    for role in roles:
        try:
            sources.append(locate(root, role, overrides.get(role)))
        except ComponentError as error:
            problems.append(str(error))
    if problems:
        raise ComponentError("\n".join(dict.fromkeys(problems)))
    return sources


def _load(source: Source, *, dtype: torch.dtype | None, device: torch.device) -> tuple[Any, PartReport]:
    started = time.perf_counter()
    load = _LOADERS.get(source.role)
    part = load(source) if load else load_network(source, dtype=dtype, device=device)
    seconds = time.perf_counter() - started
    return part, report_part(part, role=source.role, source=source.weights or source.folder, seconds=seconds)


def _load_tokenizer(source: Source) -> Any:
    import transformers

    try:
        return getattr(transformers, source.class_name).from_pretrained(source.folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ComponentError(f"tokenizer: {source.folder} makes no {source.class_name}: {error}") from error


def _load_scheduler(source: Source) -> Any:
    """The scheduler of the folder; for CogVideoX always the DPM one, which trains and samples alike.

    The published 2B names the DDIM scheduler, whose config has the same values: they describe the noise, not the solver.
    """
    import diffusers

    name = _SAME_NOISE.get(source.class_name, source.class_name)
    try:
        return getattr(diffusers, name).from_config(dict(source.config))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ComponentError(f"scheduler: {source.folder} makes no {name}: {error}") from error


_SAME_NOISE = {"CogVideoXDDIMScheduler": "CogVideoXDPMScheduler"}
_LOADERS: Mapping[str, Callable[[Source], Any]] = {"tokenizer": _load_tokenizer, "scheduler": _load_scheduler}
