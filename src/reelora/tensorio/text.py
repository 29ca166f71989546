"""Configs and other small JSON files, whoever wrote them."""

import json
from pathlib import Path
from typing import Any

from reelora.errors import FileFormatError

__all__ = ["read_json"]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises FileFormatError that names the file. Infinity is read: published scheduler configs hold it."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: no valid JSON: {error}. Copy or download it again.") from error
    if not isinstance(content, dict):
        raise FileFormatError(f"{path}: holds a {type(content).__name__}; it must be an object.")
    return content
