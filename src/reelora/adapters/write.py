"""Adapters into files, with proof."""

from pathlib import Path

from torch import Tensor

from reelora.errors import AdapterError, ConfigError, nearest
from reelora.tensorio import atomic_path, write_tensors

from . import keys
from .adapter import Adapter
from .compare import largest_difference
from .header import header_of
from .read import read_adapter

__all__ = ["write_adapter"]

LAYOUTS = (keys.LAYOUT,)
TOLERANCE = 1e-6
"""Largest relative difference that a file may have from the adapter; this layout rounds nothing, so it is 0 in practice."""


def write_adapter(adapter: Adapter, path: str | Path, layout: str = "diffusers") -> float:
    """Write one safetensors file that stock diffusers loads at the trained strength, read it back, and return the proof.

    The proof is the largest relative difference (Frobenius) of any module's dense update from the adapter's. The file
    appears whole or not at all: a failed proof leaves nothing. Raises UnknownScaleError while the scale is unknown,
    AdapterError for NaN or infinite values, ConfigError for an unknown layout or an ending other than ``.safetensors``.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        raise ConfigError(f"No layout is called {layout!r}: {nearest(layout, LAYOUTS)}")
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path} has to end in .safetensors, the only ending that diffusers loads without unpickling.")
    adapter.check_usable()
    with atomic_path(path) as part:
        write_tensors(part, _tensors(adapter), metadata=header_of(adapter))
        proof = largest_difference(adapter, read_adapter(part))
        if not proof <= TOLERANCE:
            raise AdapterError(f"Read back, the adapter differs by {proof:.2e} from the one to write: {path} was not made.")
    return proof


def _tensors(adapter: Adapter) -> dict[str, Tensor]:
    tensors = {}
    for name, pair in adapter.pairs.items():
        tensors[keys.spell(name, "A")] = pair.a.detach().contiguous()
        tensors[keys.spell(name, "B")] = pair.b.detach().contiguous()
    return tensors
