"""What a conversion writes: files of tensors that are made one by one, and the small files around them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from reelora.tensorio import DeferredTensor, Tensors, open_checkpoint, open_tensors, write_checkpoint, write_tensors

__all__ = ["KeyRow", "Plan", "TensorFile", "WriteSmall"]

WriteSmall = Callable[[Path], object]
"""Writes the small files of one folder, which is there."""


@dataclass(frozen=True, kw_only=True)
class KeyRow:
    """What became of one tensor."""

    name: str
    """Where it is now; empty for one that is not written."""
    sources: tuple[str, ...]
    """Where it came from; empty for one that was made."""
    how: str

    def as_json(self) -> dict[str, object]:
        return {"name": self.name, "from": list(self.sources), "how": self.how}


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """One file of weights."""

    place: Path
    """Below the output."""
    tensors: Mapping[str, DeferredTensor]
    root: str = ""
    """Where the tensors of a torch file lie in it; empty for safetensors."""

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def write(self, folder: Path, on_done: Callable[[], object]) -> None:
        """Make and write every tensor, one at a time."""
        path = folder / self.place
        path.parent.mkdir(parents=True, exist_ok=True)
        counted = {name: _counted(tensor, on_done) for name, tensor in self.tensors.items()}
        if self.root:
            write_checkpoint(path, {self.root: counted})
        else:
            write_tensors(path, counted, metadata={"format": "pt"})

    def read(self, folder: Path) -> Tensors:
        """What is there now."""
        path = folder / self.place
        return open_checkpoint(path).under(self.root) if self.root else open_tensors(path)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that will be written."""

    output: Path
    files: Sequence[TensorFile]
    small: Mapping[Path, WriteSmall] = field(default_factory=dict)
    """By folder below the output."""
    rows: tuple[KeyRow, ...]
    notes: tuple[str, ...]
    """What a user should know of the result."""

    @cached_property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def num_tensors(self) -> int:
        return sum(len(file.tensors) for file in self.files)

    def made(self) -> Iterator[tuple[TensorFile, str, DeferredTensor]]:
        """Every tensor of every file."""
        for file in self.files:
            for name, tensor in file.tensors.items():
                yield file, name, tensor


def _counted(tensor: DeferredTensor, on_done: Callable[[], object]) -> DeferredTensor:
    def compute():
        made = tensor.compute()
        on_done()
        return made

    return DeferredTensor(tensor.shape, tensor.dtype, compute)
