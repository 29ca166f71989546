"""The files of a SAT checkpoint as one mapping of whole tensors."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from torch import Tensor

from reelora.components.holdings import holdings
from reelora.errors import AdapterError, ComponentError, first_few
from reelora.layouts import SAT_ROLES, adapter_keys, sat_names
from reelora.tensorio import (
    SAT_TRACKER,
    CheckpointStore,
    DeferredStore,
    DeferredTensor,
    Tensors,
    cat_apart,
    open_checkpoint,
    read_iteration,
    read_json,
    same_bytes,
)

__all__ = ["SatCheckpoint", "find_files", "is_checkpoint", "open_sat"]

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
ROOTS = ("module", "state_dict", "model")
"""Where the tensors lie in a file; else at its top."""

_SHARD = re.compile(r"mp_rank_(\d{2,4})_model_states\.pt")
_PROGRESS = ("iteration", "global_steps")
"""Notes of DeepSpeed that tell how far a training was."""
_COMPARED_BYTES = 2**20
"""Tensors up to this size, which all shards hold whole, are compared when a checkpoint is opened."""


@dataclass(frozen=True, kw_only=True)
class SatCheckpoint:
    """All tensors of a checkpoint under SAT's names, put together of its shards; nothing is read yet."""

    path: Path
    """As it was named."""
    files: tuple[Path, ...]
    tensors: Tensors
    is_mapped: bool
    """Whether tensors are views of a file and not put together of several."""

    def role(self, role: str) -> Tensors:
        """The tensors of a role, without its prefix and without a LoRA's; all of a file that is of one role alone."""
        names = self.names_of(role) or list(self.tensors)
        matrices = set(adapter_keys(names))
        prefix = SAT_ROLES[role]
        kept = {name.removeprefix(prefix): _deferred(self.tensors, name) for name in names if name not in matrices}
        return DeferredStore(kept)

    def adapter(self) -> dict[str, Tensor]:
        """The LoRA matrices under their whole names; empty where there are none."""
        return {name: self.tensors[name] for name in adapter_keys(self.tensors)}

    def names_of(self, role: str) -> list[str]:
        """The whole names of a role."""
        return [name for name in self.tensors if name.startswith(SAT_ROLES[role])]

    def has(self, role: str) -> bool:
        """Whether it holds weights of a role."""
        return any(name.startswith(SAT_ROLES[role]) for name in self.tensors)

    def strangers(self) -> list[str]:
        """Names that are of no role."""
        return [name for name in self.tensors if not name.startswith((*SAT_ROLES.values(), *_FOREIGN))]


_FOREIGN = ("denoiser.sigmas",)
"""Tensors of no role that follow from the config."""


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a SAT checkpoint: a torch file, or a folder with ``latest`` or with shards."""
    if path.is_file():
        return path.suffix in PICKLES
    return (path / SAT_TRACKER).is_file() or bool(_shards_in(path))


def open_sat(path: Path) -> SatCheckpoint:
    """Map a SAT checkpoint: the folder that holds ``latest``, the folder of one iteration, or a bare torch file.

    Raises FileNotFoundError where there is none, FileFormatError where ``latest`` or a file is damaged, ComponentError for
    shards that are missing or do not belong together, AdapterError for a LoRA that is split into shards.
    """
    files = find_files(path)
    stores = [_tensors_of(file) for file in files]
    if len(stores) == 1:
        return SatCheckpoint(path=path, files=files, tensors=stores[0], is_mapped=True)
    _check_shards(files, stores)
    merged = DeferredStore({name: _merged(stores, name) for name in stores[0]})
    return SatCheckpoint(path=path, files=files, tensors=merged, is_mapped=False)


def find_files(path: Path) -> tuple[Path, ...]:
    """The shards of a checkpoint in their order, or its only file."""
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise FileNotFoundError(2, "There is no such SAT checkpoint", str(path))
    folder = path if _shards_in(path) else path / _iteration(path)
    shards = _shards_in(folder)
    if not shards:
        reason = f"No mp_rank_00_model_states.pt, though `{SAT_TRACKER}` names this folder (it holds {holdings(folder)})"
        raise FileNotFoundError(2, reason, str(folder))
    expected = max(_parallel_size(path), len(shards), max(shards) + 1)
    if missing := [f"mp_rank_{rank:02d}_model_states.pt" for rank in range(expected) if rank not in shards]:
        raise ComponentError(
            f"{folder}: {len(missing)} of {expected} model-parallel shards are missing, {first_few(missing)}. Copy all of them."
        )
    return tuple(shards[rank] for rank in range(expected))


def _iteration(folder: Path) -> str:
    tracker = folder / SAT_TRACKER
    if not tracker.is_file():
        inner = [entry.name for entry in sorted(folder.iterdir()) if (entry / SAT_TRACKER).is_file()]
        hint = f"Pass {folder / inner[0]}, which has one." if inner else f"It holds {holdings(folder)}."
        raise ComponentError(f"{folder} has no file {SAT_TRACKER}, which names the iteration of a SAT checkpoint. {hint}")
    iteration = read_iteration(folder)
    if not (folder / iteration).is_dir():
        reason = f"There is no such folder, though {tracker} names it ({folder.name} holds {holdings(folder)})"
        raise FileNotFoundError(2, reason, str(folder / iteration))
    return iteration


def _shards_in(folder: Path) -> dict[int, Path]:
    """The shards of a folder by rank."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return {int(match[1]): entry for entry in entries if (match := _SHARD.fullmatch(entry.name))}


def _parallel_size(folder: Path) -> int:
    """How many shards SAT itself says there are; 1 where it says nothing."""
    configs = (folder / "model_config.json", folder.parent / "model_config.json")
    said = next((read_json(file).get("model_parallel_size") for file in configs if file.is_file()), 1)
    return said if type(said) is int and 1 <= said <= 1024 else 1


def _tensors_of(file: Path) -> CheckpointStore:
    store = open_checkpoint(file)
    if any(name.startswith(tuple(SAT_ROLES.values())) for name in store):
        return store
    root = next((root for root in ROOTS if any(name.startswith(f"{root}.") for name in store)), "")
    return store.under(root) if root else store


def _deferred(store: Tensors, name: str) -> DeferredTensor:
    return DeferredTensor(tuple(store.shapes[name]), store.dtypes[name], lambda: store[name])


def _merged(stores: Sequence[CheckpointStore], name: str) -> DeferredTensor:
    """One tensor of all shards."""
    place = _place(name)
    shape = list(stores[0].shapes[name])
    if place != "same":
        shape[_AXIS[place]] *= len(stores)
    return DeferredTensor(tuple(shape), stores[0].dtypes[name], lambda: _put_together([store[name] for store in stores], place))


def _put_together(parts: Sequence[Tensor], place: str) -> Tensor:
    if place == "same":
        return parts[0]
    if place == "thirds":
        thirds = [part.chunk(3) for part in parts]
        return cat_apart([shard[third] for third in range(3) for shard in thirds])
    return cat_apart(list(parts), dim=_AXIS[place])


_AXIS = {"rows": 0, "thirds": 0, "columns": 1}


def _place(name: str) -> str:
    """How model parallelism splits a tensor of any role; T5 and VAE are not split."""
    prefix = SAT_ROLES["transformer"]
    return sat_names("transformer").shards(name.removeprefix(prefix)) if name.startswith(prefix) else "same"


def _check_shards(files: Sequence[Path], stores: Sequence[CheckpointStore]) -> None:
    """Raise unless all shards are of one model at one point of its training."""
    first = stores[0]
    if adapter_keys(first):
        raise AdapterError(
            f"{files[0].parent} is split into {len(files)} model-parallel shards: SAT's own forward is wrong for a LoRA so "
            "split (its ranks disagree), so nobody can say what was trained. Train with model_parallel_size 1."
        )
    for file, store in zip(files[1:], stores[1:], strict=True):
        if odd := _differences(first, store):
            raise ComponentError(
                f"{files[0].name} and {file.name} in {file.parent} are no shards of one model: {'; '.join(odd)}. "
                "Copy all shards of one iteration."
            )


def _differences(first: CheckpointStore, other: CheckpointStore) -> list[str]:
    told = [(what, first.notes.get(what), other.notes.get(what)) for what in _PROGRESS]
    differences = [f"{what} is {mine} in one and {theirs} in the other" for what, mine, theirs in told if mine != theirs]
    if names := sorted(set(first) ^ set(other)):
        return [*differences, f"{len(names)} tensors are in one of them only, {first_few(names)}"]
    if names := [
        name for name in first if (first.shapes[name], first.dtypes[name]) != (other.shapes[name], other.dtypes[name])
    ]:
        return [*differences, f"{len(names)} tensors have another shape or dtype, {first_few(names)}"]
    if names := [name for name in first if _is_compared(first, name) and not same_bytes(first[name], other[name])]:
        return [*differences, f"{len(names)} tensors that both hold whole differ, {first_few(names)}"]
    return differences


def _is_compared(store: CheckpointStore, name: str) -> bool:
    size_bytes = prod(store.shapes[name]) * store.dtypes[name].itemsize
    return size_bytes <= _COMPARED_BYTES and _place(name) == "same"
