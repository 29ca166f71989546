"""Where the weights of a base lie, and which other files go with them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reelora.errors import ComponentError, ConfigError, first_few
from reelora.recipes.model import find_model
from reelora.tensorio import TensorStore, expanded, open_tensors

__all__ = ["Base", "Files", "find_base", "is_weight_file"]

PIPELINE = "model_index.json"
STANDARD = tuple(f"{stem}.safetensors{end}" for end in (".index.json", "") for stem in ("diffusion_pytorch_model", "model"))
"""Names that diffusers and transformers load by themselves, the first that is there before the others."""
WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".onnx_data", ".gguf"})


@dataclass(frozen=True, kw_only=True)
class Files:
    """What becomes of the files of a base, by path below it; ``.`` is a base that is one file."""

    rewritten: Mapping[Path, Path]
    """The files that hold the weights of a changed role."""
    copied: Mapping[Path, Path]
    left_out: tuple[Path, ...]
    """Weights that would be there without the adapters: variants of a changed role, whole checkpoints beside a pipeline."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """A pipeline's folder, the folder of one role, or one file of weights."""

    path: Path
    stores: Mapping[str, TensorStore]
    """The weights of the roles that are changed, mapped."""

    @property
    def is_file(self) -> bool:
        return self.path.is_file()

    def place(self, file: Path) -> Path:
        """Where a file lies below the base."""
        return file.relative_to(self.path)

    def files(self) -> Files:
        """Every file below the base, hidden ones aside. Raises ComponentError for what is no ordinary file."""
        ours = {file for store in self.stores.values() for file in {store.path, *store.files.values()}}
        found = [self.path] if self.is_file else [*_files_below(self.path, frozenset())]
        weights = {file for store in self.stores.values() for file in store.files.values()}
        stale = [file for file in found if file not in ours and is_weight_file(file) and self._is_beside(file)]
        return Files(
            rewritten={self.place(file): file for file in found if file in weights},
            copied={self.place(file): file for file in found if file not in weights and file not in stale},
            left_out=tuple(self.place(file) for file in stale),
        )

    def _is_beside(self, file: Path) -> bool:
        """Whether a file lies with the weights of a changed role, or at the top of a pipeline."""
        return file.parent == self.path or any(store.path.parent in file.parents for store in self.stores.values())


def find_base(name: str, roles: Sequence[str]) -> Base:
    """The base that a user names, with the weights of these roles.

    Raises FileNotFoundError where there is none, ComponentError for a pipeline that lacks a role, ConfigError where several
    roles are asked of a base that has one, and what `open_tensors` raises.
    """
    path = expanded(find_model(name))
    if not path.exists():
        advice = "a model of the hub has to be here whole: hf download OWNER/NAME --local-dir FOLDER"
        raise FileNotFoundError(2, f"There is no such file or folder; {advice}", str(path))
    if (path / PIPELINE).is_file():
        return Base(path=path, stores={role: open_tensors(_weights_in(path, role)) for role in roles})
    if len(roles) > 1:
        raise ConfigError(
            f"{path} holds the weights of one role, and the adapters change {' and '.join(roles)}: "
            f"name the folder of the pipeline, which holds {PIPELINE}."
        )
    return Base(path=path, stores=dict.fromkeys(roles, open_tensors(_standard_in(path) if path.is_dir() else path)))


def is_weight_file(file: Path) -> bool:
    """Whether a file holds weights, or says which files do."""
    return file.suffix in WEIGHT_SUFFIXES or (".index." in file.name and file.suffix == ".json")


def _weights_in(pipeline: Path, role: str) -> Path:
    if not (pipeline / role).is_dir():
        held = sorted(entry.name for entry in pipeline.iterdir() if entry.is_dir())
        raise ComponentError(f"{role}: {pipeline} has no folder {role}, which the adapters change; it has {first_few(held)}.")
    return _standard_in(pipeline / role)


def _standard_in(folder: Path) -> Path:
    """The file that is loaded by default where several hold weights; the folder itself where none has a standard name."""
    return next((folder / name for name in STANDARD if (folder / name).is_file()), folder)


def _files_below(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:
        raise ComponentError(f"{folder} is a link to a folder that it lies in: remove it.")
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files_below(entry, above | {real})
        elif entry.is_file():
            yield entry
        else:
            raise ComponentError(f"{entry} is a broken link or no ordinary file: download it again, or remove it.")
