"""The hashes that other programs know an adapter file by."""

import hashlib
from pathlib import Path

from .header import LENGTH_BYTES

__all__ = ["webui_hashes"]

_LEGACY_START, _LEGACY_BYTES = 0x100000, 0x10000
_PIECE_BYTES = 1 << 20


def webui_hashes(path: Path) -> dict[str, str]:
    """``sshs_model_hash`` and ``sshs_legacy_hash`` of a safetensors file, as sd-scripts writes and sd-webui shows them.

    The first is SHA-256 over everything behind the header, the second the start of SHA-256 over 64 KiB behind the first MiB.
    Source: sd-scripts, library/train_util.py, ``addnet_hash_safetensors`` and ``addnet_hash_legacy``.
    """
    with path.open("rb") as file:
        file.seek(_LEGACY_START)
        legacy = hashlib.sha256(file.read(_LEGACY_BYTES)).hexdigest()[:8]
        file.seek(0)
        file.seek(int.from_bytes(file.read(LENGTH_BYTES), "little") + LENGTH_BYTES)
        digest = hashlib.sha256()
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return {"sshs_model_hash": digest.hexdigest(), "sshs_legacy_hash": legacy}
