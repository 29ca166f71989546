"""What a part is, as one hash, without loading it."""

import hashlib
import json
from pathlib import Path

from reelora.tensorio import open_tensors, sampled_fingerprint

from .folder import Source, locate, open_folder
from .roles import check_roles, is_tokenizer

__all__ = ["fingerprint_of"]


def fingerprint_of(path_or_id: str | Path, *roles: str) -> str:
    """SHA-256 in hex over the configs, tokenizer files and weights (sampled, see tensorio) of some roles of a model.

    Equal for equal parts wherever they lie and however they are sharded. Raises as ``load_components`` does.
    """
    check_roles(roles)
    root = open_folder(path_or_id, roles)
    digest = hashlib.sha256()
    for role in roles:
        for content in _contents(locate(root, role)):
            digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _contents(source: Source) -> list[bytes]:
    """Everything that decides what a part computes."""
    facts = {key: value for key, value in source.config.items() if key not in ("_name_or_path", "_diffusers_version")}
    contents = [source.class_name.encode(), json.dumps(facts, sort_keys=True).encode()]
    if source.weights:
        contents.append(sampled_fingerprint(open_tensors(source.weights)).encode())
    elif is_tokenizer(source.role):
        files = [path for path in sorted(source.folder.iterdir()) if path.is_file()]
        contents += [path.read_bytes() for path in files if not path.name.startswith(".")]  # a desktop's own, such as .DS_Store
    return contents
