"""Finds a model's parts on disk: which class plays a role, where its config is and where its weights are."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reelora.errors import ComponentError, first_line
from reelora.tensorio import expanded, read_json

from .holdings import holdings
from .roles import CONFIG_FILES, ROLES, TOKENIZER_FILES, is_tokenizer, library_of

__all__ = ["INDEX", "Source", "class_in", "held_roles", "locate", "open_folder", "read_index"]

INDEX = "model_index.json"
_WEIGHT_SUFFIXES = (".safetensors.index.json", ".safetensors")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CLASS_KEYS = ("_class_name", "tokenizer_class", "architectures")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where one role comes from, checked as far as it can be without loading anything."""

    role: str
    class_name: str
    folder: Path
    config: Mapping[str, Any] = field(repr=False)
    weights: Path | None = None
    """None for the roles that have no weights."""
    described_in: str = ""
    """Where its config stands, if not in ``config.json`` of its folder."""

    @property
    def description(self) -> str:
        """Where its config stands, for people."""
        return self.described_in or str(self.folder / CONFIG_FILES.get(self.role, "config.json"))


def open_folder(path_or_id: str | Path, roles: Collection[str] | None) -> Path:
    """The local folder of a model: the path itself, or the snapshot of a hub id with the files of the asked roles.

    Raises FileNotFoundError where it is neither, ComponentError where the hub does not give it.
    """
    path = expanded(path_or_id)
    if path.is_dir():
        return path
    if path.exists():
        raise ComponentError(f"{path} is a file; pass the folder that holds {INDEX}.")
    if not _HUB_ID.fullmatch(str(path_or_id)):
        raise FileNotFoundError(2, "There is no such model folder, and it is no hub id of the form owner/name", str(path))
    return _snapshot(str(path_or_id), ROLES if roles is None else roles)


def read_index(root: Path) -> dict[str, Any]:
    """``model_index.json`` of a model folder. Raises ComponentError that says what the folder holds instead."""
    if (root / INDEX).is_file():
        return read_json(root / INDEX)
    if (root / "config.json").is_file():
        declared = _declared_class(read_json(root / "config.json")) or "a model"
        raise ComponentError(f"{root} has no {INDEX}: it holds one part, {declared}. Pass the folder above it.")
    raise ComponentError(f"{root} has no {INDEX}, so it is no model folder in diffusers layout; it holds {holdings(root)}.")


def locate(root: Path, role: str, override: Path | None = None) -> Source:
    """Find one role in a model folder, or where ``override`` says: a model folder, a role's own folder, or weights.

    Raises ComponentError that names what was found and what it must be.
    """
    weights = None
    if override is None:
        folder, named = _folder_of(root, role)
    elif (override / INDEX).is_file():
        folder, named = _folder_of(override, role)
    elif override.is_dir():
        folder, named = override, None
    elif override.is_file():
        (folder, named), weights = _folder_of(root, role), override
    else:
        raise ComponentError(f"{role}: there is no {override}, where paths says that it is.")
    config = _read_config(folder, role)
    class_name = _check_class(folder, role, named, _declared_class(config))
    if is_tokenizer(role):
        _check_tokenizer(folder, role)
    if is_tokenizer(role) or role == "scheduler":
        return Source(role=role, class_name=class_name, folder=folder, config=config)
    return Source(role=role, class_name=class_name, folder=folder, config=config, weights=weights or _weights(folder, role))


def _folder_of(root: Path, role: str) -> tuple[Path, str]:
    """A role's folder and the class that the index names for it."""
    index = read_index(root)
    class_name = class_in(index, role)
    if class_name is None:
        there = ", ".join(name for name in held_roles(index) if name != role) or "no other role"
        raise ComponentError(f"{role}: {root / INDEX} names none; it has {there}.")
    if not (root / role).is_dir():
        raise ComponentError(f"{role}: {root} has no folder {role}, which its {INDEX} names; it holds {holdings(root)}.")
    return root / role, class_name


def held_roles(index: Mapping[str, Any]) -> list[str]:
    """The roles that an index does not leave empty, in the order of loading."""
    return [role for role in ROLES if index.get(role) not in (None, [None, None])]


def class_in(index: Mapping[str, Any], role: str) -> str | None:
    """The class that an index names for a role; None where it names none."""
    names = index.get(role)
    return names[1] if isinstance(names, list) and len(names) == 2 and isinstance(names[1], str) else None


def _read_config(folder: Path, role: str) -> dict[str, Any]:
    path = folder / CONFIG_FILES.get(role, "config.json")
    if not path.is_file():
        raise ComponentError(f"{role}: {folder} has no {path.name}; it holds {holdings(folder)}.")
    return read_json(path)


def _declared_class(config: Mapping[str, Any]) -> str | None:
    """The class that a config names, in the three spellings of diffusers and transformers."""
    found = next((config[key] for key in _CLASS_KEYS if config.get(key)), None)
    return found[0] if isinstance(found, list) else found


def _check_class(folder: Path, role: str, named: str | None, declared: str | None) -> str:
    """The class of a role, which must be one that can be run; index and config must not contradict each other."""
    _, library = library_of(role)
    known = library.classes[role]
    wrong = sorted({name for name in (named, declared) if name and name not in known})
    if wrong or not (named or declared):
        found = " and ".join(wrong) or "no class name"
        raise ComponentError(f"{role}: found {found} in {folder}; it must be {' or '.join(sorted(known))}.")
    if role in ("transformer", "unet", "vae") and named and declared and named != declared:
        raise ComponentError(f"{role}: {INDEX} says {named} but {folder / 'config.json'} says {declared}; correct one of them.")
    return named or str(declared)


def _check_tokenizer(folder: Path, role: str) -> None:
    found = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not found:
        raise ComponentError(f"{role}: {folder} has none of {', '.join(TOKENIZER_FILES)}; it holds {holdings(folder)}.")
    if found[0].endswith(".json"):
        read_json(folder / found[0])


def _weights(folder: Path, role: str) -> Path:
    """The index or file of a role's weights, preferred by its standard name; else the only one there is."""
    _, library = library_of(role)
    for suffix in _WEIGHT_SUFFIXES:
        if (path := folder / f"{library.weight_stem}{suffix}").is_file():
            return path
    for suffix in _WEIGHT_SUFFIXES:
        if len(found := sorted(folder.glob(f"*{suffix}"))) == 1:
            return found[0]
    raise ComponentError(
        f"{role}: {folder} has no {library.weight_stem}.safetensors (nor its index); it holds {holdings(folder)}. "
        "Other formats must be converted to safetensors first."
    )


def _snapshot(hub_id: str, roles: Collection[str]) -> Path:
    """Download, or find in the cache, the asked roles' files and every config."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = [
        INDEX,
        "*/config.json",
        *(f"{role}/*{end}" for role in roles for end in (".json", ".safetensors", ".model", ".txt")),
    ]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except (OSError, HFValidationError) as error:
        raise ComponentError(
            f"{hub_id!r} is no folder here, and the hub did not give it: {first_line(error)} Check the name and the "
            "connection, or download the model elsewhere and pass its folder."
        ) from error
