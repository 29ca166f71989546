"""``inspect``: what a file says of itself; nothing here needs diffusers."""

from pathlib import Path

from reelora.adapters import Adapter, read_adapter

__all__ = ["inspect"]

VIDEO_SUFFIXES = {".mp4", ".gif", ".png"}


def inspect(path: Path) -> dict[str, object]:
    """Facts of an adapter (a file, or a folder with one), or how a video that Reelora wrote was made."""
    if path.suffix in VIDEO_SUFFIXES:
        from reelora.generate import read_video_metadata

        return read_video_metadata(path)
    return _adapter_facts(read_adapter(path))


def _adapter_facts(adapter: Adapter) -> dict[str, object]:
    return {
        "layout": adapter.layout,
        "roles": list(adapter.roles),
        "modules": len(adapter.pairs),
        "ranks": list(adapter.ranks),
        "scales": sorted({pair.scale for pair in adapter.pairs.values() if pair.scale is not None}) or None,
        "scale_source": adapter.scale_source,
        "parameters": adapter.num_parameters,
        "layers": sorted({pair.shape for pair in adapter.pairs.values()}),
        **adapter.provenance,
    }
