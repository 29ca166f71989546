"""Checkpoints of a run: what was learned and the optimizer's state, never the frozen base.

``checkpoints/step-000100/`` holds ``state.safetensors`` and, written last, ``manifest.json`` with the step and the identity of
the run. The folder gets its name by one rename, so it is whole or not there.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from reelora.errors import ConfigError, DataError, FileFormatError, ReeloraError
from reelora.tensorio import fingerprint, open_tensors, write_tensors

from .state import State

__all__ = [
    "Checkpoint",
    "check_identity",
    "find_checkpoint",
    "find_step",
    "read_state",
    "skipped_checkpoints",
    "write_checkpoint",
]

Identity = Mapping[str, object]
_STATE, _MANIFEST = "state.safetensors", "manifest.json"
_DIGEST = "digest"
_MEANING = {
    "base": "the weights of the model",
    "data": "the clips to train on: videos, captions, sizes, or how many are held out",
    "init_from": "the adapter to go on with",
    "loop.compile": "whether blocks are compiled; None: they are not",
}
"""What stands behind a hash."""
_HASH = re.compile(r"[0-9a-f]{32,}")
_NAME = re.compile(r"step-(\d{6,})")
_ADVICE = "Delete it, or set loop.skip_damaged_checkpoints = true, to go on from the one before."


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where a run stood after ``step`` optimizer steps."""

    folder: Path
    step: int
    identity: Identity
    seconds: float
    content: str
    """Fingerprint of the state's tensors."""
    optimizer: Any
    """What of the optimizer's state is no tensor."""


def write_checkpoint(
    folder: Path, state: State, *, step: int, identity: Identity, seconds: float, keep: int, best: int | None
) -> Path:
    """Write a checkpoint into ``folder``, then delete all but the ``keep`` newest and that of step ``best``.

    On a full disk the older ones but the newest make room first. Raises OSError that names the last whole one if it still does
    not fit; that one is left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / _name(step)
    tensors, optimizer = state
    manifest = {"step": step, "identity": identity, "seconds": seconds, "content": fingerprint(tensors), "optimizer": optimizer}
    manifest[_DIGEST] = _digest(manifest)
    try:
        _write(final, tensors, manifest)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _prune(folder, keep=1, best=best)
        _retry(final, tensors, manifest, error)
    _prune(folder, keep=keep, best=best)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """The folders of all checkpoints, oldest first; what else lies there, such as a copy under another name, is left alone."""
    steps = {int(match[1]): path for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name)) and path.is_dir()}
    return [steps[step] for step in sorted(steps)]


def find_checkpoint(folder: Path, *, skip_damaged: bool = False) -> Checkpoint | None:
    """The newest checkpoint in ``folder``, or the newest whole one; None where there is none.

    Raises FileFormatError or DataError that names a damaged one, unless it is to be skipped.
    """
    for path in reversed(list_checkpoints(folder)):
        try:
            checkpoint = read_manifest(path)
            if skip_damaged:
                read_state(checkpoint)
        except (FileFormatError, DataError):
            if not skip_damaged:
                raise
            continue
        return checkpoint
    return None


def skipped_checkpoints(folder: Path, step: int) -> list[Path]:
    """Those newer than the one of ``step`` from which a run goes on: the damaged ones."""
    return [path for path in list_checkpoints(folder) if int(path.name.removeprefix("step-")) > step]


def find_step(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of one step; FileFormatError where it is not there or not whole."""
    return read_manifest(folder / _name(step))


def read_manifest(path: Path) -> Checkpoint:
    """The checkpoint in a folder; FileFormatError where its manifest is not one."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        if manifest.pop(_DIGEST, None) not in (None, _digest(manifest)):  # none: written by an earlier version
            raise ValueError("its manifest is not the one that was written")
        return Checkpoint(folder=path, **manifest)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path}: this checkpoint cannot be read ({error}). {_ADVICE}") from error


def read_state(checkpoint: Checkpoint) -> State:
    """What was learned; DataError where the bytes are not those that were written."""
    try:
        tensors = dict(open_tensors(checkpoint.folder / _STATE))
    except (ReeloraError, OSError) as error:
        raise DataError(f"{checkpoint.folder}: its state cannot be read: {error}. {_ADVICE}") from error
    if fingerprint(tensors) != checkpoint.content:
        raise DataError(f"{checkpoint.folder}: its state is damaged. {_ADVICE}")
    return tensors, checkpoint.optimizer


def check_identity(checkpoint: Checkpoint, identity: Identity) -> None:
    """Raise ConfigError that lists every setting in which the run differs from the one that wrote the checkpoint."""
    if differences := _differences(checkpoint.identity, json.loads(json.dumps(identity))):
        raise ConfigError(
            f"{checkpoint.folder}: this folder belongs to another run. It differs in:\n"
            + "\n".join(f"- {line}" for line in differences)
            + "\nChoose another output folder, or use the old settings. Nothing was changed."
        )


def _digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _write(final: Path, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    fresh = final.with_name(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir()
        write_tensors(fresh / _STATE, tensors)
        (fresh / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        for path in (fresh / _MANIFEST, fresh):
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        fresh.rename(final)
        _sync(final.parent)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _retry(final: Path, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any], error: OSError) -> None:
    try:
        _write(final, tensors, manifest)
    except OSError:
        whole = list_checkpoints(final.parent)
        rest = f"the last whole checkpoint is {whole[-1].name}" if whole else "there is no checkpoint yet"
        text = f"{error.strerror}. {final.name} is not saved, {rest}: free some space, and the same command goes on"
        raise OSError(error.errno, text, str(final.parent)) from error


def _prune(folder: Path, *, keep: int, best: int | None) -> None:
    kept = {_name(best)} if best is not None else set()
    for old in list_checkpoints(folder)[:-keep]:
        if old.name not in kept:
            shutil.rmtree(old)


def _differences(theirs: object, ours: object, path: str = "") -> Sequence[str]:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        keys = sorted({*theirs, *ours})
        return [line for key in keys for line in _differences(theirs.get(key), ours.get(key), f"{path}.{key}".strip("."))]
    meaning = f" ({_MEANING[path]})" if path in _MEANING else ""
    return [] if theirs == ours else [f"{path}{meaning}: it has {_shown(theirs)}, this run {_shown(ours)}"]


def _shown(value: object) -> str:
    """A hash by its beginning."""
    return f"{value[:12]} ..." if isinstance(value, str) and _HASH.fullmatch(value) else repr(value)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
