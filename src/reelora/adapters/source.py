"""What a path to an adapter holds: its tensors, its header, and the settings that lie beside it."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reelora.errors import AdapterError, FileFormatError, first_few, first_line
from reelora.tensorio import (
    SAT_TRACKER,
    expanded,
    open_checkpoint,
    open_tensors,
    parse_json,
    read_iteration,
    read_sat_yaml,
    shown,
)

__all__ = ["Source", "open_source"]

CONFIG = "adapter_config.json"
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PICKLED = ("adapter_model.bin", "pytorch_lora_weights.bin")
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
NO_HUB_IDS = (".safetensors", ".json", ".yaml", *PICKLES)
NOTES = "reelora"
"""Where a SAT file of ours holds what a safetensors file holds in its header."""

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One adapter as it lies on the disk; tensors are mapped, not read."""

    path: Path
    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    """``adapter_config.json`` of a PEFT directory."""
    sat_lora: tuple[float, int] | None = None
    """alpha and r of the SAT YAML."""


def open_source(path_or_id: str | Path, *, sat_config: Sequence[str | Path] = ()) -> Source:
    """Find and map an adapter: a file, a folder with one (PEFT, SAT, or exactly one safetensors), or a hub id.

    Raises FileNotFoundError where there is none, FileFormatError where it is no such file, AdapterError for an unclear folder.
    """
    path = expanded(path_or_id)
    if not path.exists() and _is_hub_id(str(path_or_id)):
        path = _snapshot(str(path_or_id))
    if path.is_dir():
        path = _the_one_in(path)
    sat_lora = _sat_lora(sat_config) if sat_config else None
    if path.suffix in PICKLES:
        return _pickled(path, sat_lora)
    store = open_tensors(path)
    return Source(
        path=path,
        tensors=store,
        shapes=store.shapes,
        dtypes=store.dtypes,
        metadata=store.metadata,
        config=_config_beside(path),
        sat_lora=sat_lora,
    )


def _pickled(path: Path, sat_lora: tuple[float, int] | None) -> Source:
    """A torch file, read without running anything in it; what SAT saved is under ``module``."""
    store = open_checkpoint(path)
    if any(name.startswith("module.") for name in store):
        store = store.under("module")
    notes = {name.removeprefix(f"{NOTES}."): note for name, note in store.notes.items() if name.startswith(f"{NOTES}.")}
    return Source(
        path=path,
        tensors=store,
        shapes=store.shapes,
        dtypes=store.dtypes,
        metadata={name: note for name, note in notes.items() if isinstance(note, str)},
        config=_config_beside(path),
        sat_lora=sat_lora,
    )


def _is_hub_id(text: str) -> bool:
    """``owner/name``; not what only a mistyped path can be."""
    return _HUB_ID.fullmatch(text) is not None and not text.endswith(NO_HUB_IDS)


def _config_beside(path: Path) -> dict[str, Any] | None:
    """``adapter_config.json``, where the file is the one that it speaks of."""
    beside = path.with_name(CONFIG)
    return parse_json(beside.read_bytes(), beside) if path.name in PEFT_FILES and beside.is_file() else None


def _the_one_in(folder: Path) -> Path:
    """The adapter file of a folder."""
    if (folder / SAT_TRACKER).is_file():
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
    iteration = read_iteration(folder)
    shards = sorted((folder / iteration).glob("mp_rank_*_model_states.pt"))
    if not shards:
        raise FileNotFoundError(2, "No mp_rank_00_model_states.pt, though `latest` names this folder", str(folder / iteration))
    if len(shards) > 1:
        raise AdapterError(
            f"{folder / iteration} is split into {len(shards)} model-parallel shards: SAT's own forward is wrong for a LoRA "
            "so split (its ranks disagree), so nobody can say what was trained. Train with model_parallel_size 1."
        )
    return shards[0]


def _sat_lora(paths: Sequence[str | Path]) -> tuple[float, int]:
    """alpha and r of the ``lora_config`` in SAT YAML files (the later file wins); alpha is 1 where they are silent."""
    found: dict[str, Any] = {}
    for path in paths:
        content = _yaml(Path(path))
        for key in ("model", "network_config", "params", "modules", "lora_config", "params"):
            content = content.get(key) if isinstance(content, dict) else None
        found |= content if isinstance(content, dict) else {}
    rank, alpha = found.get("r"), found.get("lora_alpha", 1)
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not 0 < alpha < sys.float_info.max:
        raise AdapterError(
            f"{first_few([str(path) for path in paths])}: no usable model.network_config.params.modules.lora_config.params "
            f"(r is {_plain(rank)}, lora_alpha {_plain(alpha)}); pass the YAML that the LoRA was trained with."
        )
    return float(alpha), rank


def _yaml(path: Path) -> Any:
    import yaml

    raw = read_sat_yaml(path)
    try:
        return yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: no valid YAML: {shown(str(error))}") from error


def _plain(value: object) -> str:
    """A value of a YAML for people; one that holds others may hold itself, or a thousand million of them."""
    return shown(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _snapshot(hub_id: str) -> Path:
    """Download, or find in the cache, the adapter files of a hub repository."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.safetensors", CONFIG], ignore_patterns=["*/*"]))
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(2, f"No such file here, and the hub did not give it: {first_line(error)}", hub_id) from error
