"""Checkpoints of a run: the adapter's weights and the optimizer's state, never the frozen base.

``checkpoints/step-000100/`` holds ``state.safetensors`` and, written last, ``manifest.json`` with the step and the identity of
the run. The folder gets its name by one rename, so it is whole or not there.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reelora.errors import ConfigError, DataError, FileFormatError, ReeloraError
from reelora.tensorio import fingerprint, open_tensors, write_tensors

__all__ = ["Checkpoint", "newest_checkpoint", "restore", "write_checkpoint"]

Identity = Mapping[str, object]
_STATE, _MANIFEST = "state.safetensors", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stood after ``step`` optimizer steps."""

    folder: Path
    step: int
    identity: Identity
    seconds: float
    content: str
    """Fingerprint of the state."""


def write_checkpoint(
    folder: Path, model: nn.Module, optimizer: Optimizer, *, step: int, identity: Identity, seconds: float, keep: int
) -> Path:
    """Write a checkpoint into ``folder``, then delete all but the ``keep`` newest; OSError leaves the older ones alone."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh, final = folder / ".new", folder / f"step-{step:06d}"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir()
        state = _state(model, optimizer)
        write_tensors(fresh / _STATE, state)
        manifest = {"step": step, "identity": identity, "seconds": seconds, "content": fingerprint(state)}
        (fresh / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        _sync(fresh / _MANIFEST)
        shutil.rmtree(final, ignore_errors=True)
        fresh.rename(final)
        _sync(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    for old in _folders(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in ``folder``; None where there is none, FileFormatError where its manifest is not one."""
    for path in reversed(_folders(folder)):
        try:
            return Checkpoint(folder=path, **json.loads((path / _MANIFEST).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise FileFormatError(
                f"{path}: this checkpoint cannot be read ({error}). Delete it to go on from the one before."
            ) from error
    return None


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, *, identity: Identity) -> None:
    """Put the checkpoint's state into ``model`` and ``optimizer``; nothing has changed if it does not fit.

    Raises ConfigError that lists every setting in which the run differs from the one that wrote it, DataError for a state
    that is damaged.
    """
    if differences := _differences(checkpoint.identity, identity):
        raise ConfigError(
            f"{checkpoint.folder}: this folder belongs to another run. It differs in:\n"
            + "\n".join(f"- {line}" for line in differences)
            + "\nChoose another output folder, or use the old settings."
        )
    state, parameters = _read_state(checkpoint), _trainable(model)
    wanted = {name: tuple(tensor.shape) for name, tensor in _state(model, optimizer, filled=True).items()}
    if wanted != {name: tuple(tensor.shape) for name, tensor in state.items()}:
        raise DataError(f"{checkpoint.folder}: its state is not that of this model and optimizer. Delete it and train again.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[f"weights.{name}"])
            # The fused optimizer reads its step count on the parameter's own device.
            optimizer.state[parameter] = {
                key: state[f"{key}.{name}"].to(parameter.device, copy=True) for key in ("step", "exp_avg", "exp_avg_sq")
            }


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _state(model: nn.Module, optimizer: Optimizer, *, filled: bool = False) -> dict[str, Tensor]:
    """Weights and AdamW's moments by name; ``filled`` also where the optimizer has made no step yet."""
    state = {}
    for name, parameter in _trainable(model).items():
        state[f"weights.{name}"] = parameter.detach()
        empty = {"step": torch.tensor(0.0), "exp_avg": parameter.detach(), "exp_avg_sq": parameter.detach()} if filled else {}
        state |= {f"{key}.{name}": value for key, value in {**empty, **optimizer.state.get(parameter, {})}.items()}
    return state


def _read_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    try:
        state = dict(open_tensors(checkpoint.folder / _STATE))
    except (ReeloraError, OSError) as error:
        raise DataError(
            f"{checkpoint.folder}: its state cannot be read: {error}. Delete it to go on from the one before."
        ) from error
    if fingerprint(state) != checkpoint.content:
        raise DataError(f"{checkpoint.folder}: its state is damaged. Delete it to go on from the one before.")
    return state


def _differences(theirs: object, ours: object, path: str = "") -> list[str]:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        keys = sorted({*theirs, *ours})
        return [line for key in keys for line in _differences(theirs.get(key), ours.get(key), f"{path}.{key}".strip("."))]
    return [] if theirs == ours else [f"{path}: it has {theirs!r}, this run {ours!r}"]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
