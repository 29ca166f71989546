"""Boards that a run's figures can be looked at on."""

import time
from pathlib import Path
from typing import Any

from reelora.errors import ConfigError

from .rows import Row
from .track import MakeBoard

__all__ = ["TensorBoard", "weights_and_biases"]


class TensorBoard:
    """TensorBoard's event file, written at once and in this thread, so that a full disk is an error here and not a lost log."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        place = folder / "tensorboard"
        place.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.reelora"  # TensorBoard reads the files of a folder in this order
        self._file = (place / name).open("wb")
        self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        self._add(step=first_step + 1, session_log={"status": "START"})

    def write(self, row: Row) -> None:
        values = [{"tag": name, "simple_value": value} for name, value in row.items() if name != "step"]
        self._add(step=row["step"], summary={"value": values})

    def close(self) -> None:
        self._file.close()

    def _add(self, **content: Any) -> None:
        from tensorboard.compat.proto import event_pb2

        message: Any = event_pb2
        self._records.write(message.Event(wall_time=time.time(), **content).SerializeToString())
        self._file.flush()


def weights_and_biases(project: str) -> MakeBoard:
    """Makes boards in this project of Weights & Biases; ConfigError where the package is missing.

    A resumed run goes on in the run of its folder. ``WANDB_MODE=offline`` keeps everything on this machine.
    """
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("wandb names a project, but the package is missing: pip install wandb") from error

    class Run:
        def __init__(self, folder: Path, *, first_step: int) -> None:
            self._run = wandb.init(project=project, name=folder.name, id=_id_of(folder), dir=folder, resume="allow")

        def write(self, row: Row) -> None:
            self._run.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])

        def close(self) -> None:
            self._run.finish()

    return Run


def _id_of(folder: Path) -> str:
    """The name of a folder's run, made once and kept beside its figures."""
    note = folder / "wandb-run-id.txt"
    if not note.exists():
        note.write_text(f"{folder.name}-{time.time_ns():x}", encoding="utf-8")
    return note.read_text(encoding="utf-8").strip()
