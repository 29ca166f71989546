"""What a path to an adapter holds: its tensors, its header, and the settings that lie beside it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from reelora.errors import AdapterError, FileFormatError, first_few
from reelora.tensorio import open_checkpoint, open_tensors

__all__ = ["Source", "open_source"]

CONFIG = "adapter_config.json"
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PICKLED = ("adapter_model.bin", "pytorch_lora_weights.bin")
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One adapter as it lies on the disk; tensors are mapped, not read."""

    path: Path
    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    """``adapter_config.json`` of a PEFT directory."""
    sat_lora: tuple[float, int] | None = None
    """alpha and r of the SAT YAML."""

    @property
    def config_name(self) -> str:
        return CONFIG


def open_source(path_or_id: str | Path, *, sat_config: Sequence[str | Path] = ()) -> Source:
    """Find and map an adapter: a file, a folder with one (PEFT, SAT, or exactly one safetensors), or a hub id.

    Raises FileNotFoundError where there is none, FileFormatError where it is no such file, AdapterError for an unclear folder.
    """
    path = Path(path_or_id).expanduser()
    if not path.exists() and _HUB_ID.fullmatch(str(path_or_id)):
        path = _snapshot(str(path_or_id))
    if path.is_dir():
        path = _the_one_in(path)
    sat_lora = _sat_lora(sat_config) if sat_config else None
    if path.suffix in PICKLES:
        return _pickled(path, sat_lora)
    store = open_tensors(path)
    beside = path.with_name(CONFIG)
    config = _read_config(beside) if beside.is_file() and path.name.startswith("adapter_model.") else None
    return Source(path=path, tensors=store, shapes=store.shapes, metadata=store.metadata, config=config, sat_lora=sat_lora)


def _pickled(path: Path, sat_lora: tuple[float, int] | None) -> Source:
    """A torch file, read without running anything in it; what SAT saved is under ``module``."""
    store = open_checkpoint(path)
    inner = {name.removeprefix("module."): name for name in store if name.startswith("module.")} or {
        name: name for name in store
    }
    config = _read_config(path.with_name(CONFIG)) if path.with_name(CONFIG).is_file() else None
    return Source(
        path=path,
        tensors=_Renamed(store, inner),
        shapes={name: store.shapes[stored] for name, stored in inner.items()},
        config=config,
        sat_lora=sat_lora,
    )


class _Renamed(Mapping[str, Tensor]):
    """Tensors of a store under other names, still read only when asked for."""

    def __init__(self, store: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._store, self._names = store, names

    def __getitem__(self, name: str) -> Tensor:
        return self._store[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _the_one_in(folder: Path) -> Path:
    """The adapter file of a folder."""
    if (folder / "latest").is_file():
        return _sat_file(folder)
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    found = [name for name in names if name in PEFT_FILES and CONFIG in names][:1]
    found = found or [name for name in names if name.endswith(".safetensors")] or [name for name in names if name in PICKLED]
    if not found:
        raise FileNotFoundError(2, f"No adapter in this folder (it holds {first_few(names) or 'no file'})", str(folder))
    if len(found) > 1:
        raise AdapterError(f"{folder} holds {len(found)} adapter files, {first_few(found)}; name the one that you mean.")
    return folder / found[0]


def _sat_file(folder: Path) -> Path:
    """``<latest>/mp_rank_00_model_states.pt`` of a SAT checkpoint that is not sharded."""
    iteration = (folder / "latest").read_text(errors="replace").strip()
    if not re.fullmatch(r"\d{1,12}|release", iteration):
        raise FileFormatError(f"{folder / 'latest'} says {iteration[:40]!r}; it has to name an iteration or 'release'.")
    shards = sorted((folder / iteration).glob("mp_rank_*_model_states.pt"))
    if not shards:
        raise FileNotFoundError(2, "No mp_rank_00_model_states.pt, though `latest` names this folder", str(folder / iteration))
    if len(shards) > 1:
        raise AdapterError(
            f"{folder / iteration} is split into {len(shards)} model-parallel shards: SAT's own forward is wrong for a LoRA "
            "so split (its ranks disagree), so nobody can say what was trained. Train with model_parallel_size 1."
        )
    return shards[0]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: no valid JSON: {error}. Copy or download it again.") from error
    if not isinstance(config, dict):
        raise FileFormatError(f"{path}: holds a {type(config).__name__}; it must be an object.")
    return config


def _sat_lora(paths: Sequence[str | Path]) -> tuple[float, int]:
    """alpha and r of the ``lora_config`` in SAT YAML files (the later file wins); alpha is 1 where they are silent."""
    import yaml

    found: dict[str, Any] = {}
    for path in paths:
        try:
            content = yaml.safe_load(Path(path).read_bytes())
        except yaml.YAMLError as error:
            raise FileFormatError(f"{path}: no valid YAML: {error}") from error
        for key in ("model", "network_config", "params", "modules", "lora_config", "params"):
            content = content.get(key) if isinstance(content, dict) else None
        found |= content if isinstance(content, dict) else {}
    rank, alpha = found.get("r"), found.get("lora_alpha", 1)
    if type(rank) is not int or rank < 1 or isinstance(alpha, bool) or not isinstance(alpha, int | float) or alpha <= 0:
        raise AdapterError(
            f"{first_few([str(path) for path in paths])}: no usable model.network_config.params.modules.lora_config.params "
            f"(r is {rank!r}, lora_alpha {alpha!r}); pass the YAML that the LoRA was trained with."
        )
    return float(alpha), rank


def _snapshot(hub_id: str) -> Path:
    """Download, or find in the cache, the adapter files of a hub repository."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.safetensors", CONFIG], ignore_patterns=["*/*"]))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(2, f"No such file here, and the hub did not give it: {reason}", hub_id) from error
