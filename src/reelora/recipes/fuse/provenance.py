"""What a fused file says of itself.

It stands in the file's own header, not in a file beside it: weights are renamed, copied and passed on alone, and the question
which adapters are in them comes months later. Loaders skip header entries that they do not know. The header grows by whole
blocks of the disk, so that the data behind it keep their alignment and differ from the base in the fused weights alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reelora import __version__
from reelora.adapters import Adapter, content_hash, fingerprints_of

from .base import Base
from .match import Adapters

__all__ = ["PROVENANCE", "fused_again", "provenance_of"]

PROVENANCE = "reelora_fused"
"""The entry of the header."""


def provenance_of(base: Base, adapters: Adapters, rounding: str) -> dict[str, Any]:
    """Adapters with hashes and strengths, the base with fingerprints, and what the base said of itself."""
    return {
        "reelora": __version__,
        "adapters": [_description(name, adapter, strength) for name, (adapter, strength) in adapters.items()],
        "base": {"name": base.path.name, **{role: fingerprints_of(store) for role, store in base.stores.items()}},
        "rounding": rounding,
        "before": _fused_before(base),
    }


def fused_again(provenance: Mapping[str, Any]) -> list[str]:
    """Files of the adapters that are fused now and, as the base says, were before."""
    before = json.dumps(provenance["before"])
    return [row["file"] for row in provenance["adapters"] if row["content_hash"] in before]


def _description(name: str, adapter: Adapter, strength: float) -> dict[str, Any]:
    """An adapter without its folder, which is nobody's business."""
    words = adapter.provenance.get("trigger_words")
    told = {"file": Path(name).name, "strength": strength, "content_hash": content_hash(adapter)}
    return {**told, "scale_by": adapter.scale_source, **({"trigger_words": words} if words else {})}


def _fused_before(base: Base) -> list[Any]:
    texts = [store.metadata[PROVENANCE] for store in base.stores.values() if PROVENANCE in store.metadata]
    return [_parsed(text) for text in dict.fromkeys(texts)]


def _parsed(text: str) -> Any:
    """JSON, or the text itself where somebody wrote something else there."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
