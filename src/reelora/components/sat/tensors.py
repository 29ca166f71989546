"""SAT's tensors in our names: views of theirs where they lie together, copies where diffusers orders them otherwise."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

from torch import Tensor

from reelora.errors import ComponentError, first_few
from reelora.layouts import Cut, SatReading, sat_names
from reelora.tensorio import DeferredStore, DeferredTensor, Tensors, cat_apart

__all__ = ["cut_tensor", "in_our_names"]

PATCH_WEIGHT = "patch_embed.proj.weight"


def in_our_names(
    role: str, tensors: Tensors, path: Path, *, num_levels: int = 0, is_mapped: bool, patch: Sequence[int] = ()
) -> tuple[DeferredStore, SatReading]:
    """The tensors of a role under our names, and how their names were explained.

    A patch weight that is stored as a matrix becomes the convolution ``patch`` (in, height, width) where it has its size:
    CogVideo at its head stores it so. Raises ComponentError that names what is explained by nothing.
    """
    reading = sat_names(role, num_levels=num_levels).read(tensors)
    if reading.strangers:
        raise ComponentError(
            f"{role}: {len(reading.strangers)} of {len(tensors)} tensors of {path} are no part of a CogVideoX {role}: "
            f"{first_few(reading.strangers)}. Is it another model, or was it trained with other code?"
        )
    ours = {name: _deferred(tensors, cut, is_mapped) for name, cut in reading.cuts.items()}
    if PATCH_WEIGHT in ours and patch:
        ours[PATCH_WEIGHT] = _as_convolution(ours[PATCH_WEIGHT], patch)
    return DeferredStore(ours), reading


def cut_tensor(tensor: Tensor, cut: Cut) -> Tensor:
    """The chunks of a tensor that are one of ours."""
    if cut.num_chunks == 1:
        return tensor
    pieces = tensor.chunk(cut.num_chunks)
    chosen = [pieces[index] for index in cut.chunks]
    return chosen[0] if len(chosen) == 1 else cat_apart(chosen)


def _deferred(tensors: Tensors, cut: Cut, is_mapped: bool) -> DeferredTensor:
    shape = tuple(tensors.shapes[cut.key])
    if shape and cut.num_chunks > 1:
        shape = (shape[0] // cut.num_chunks * len(cut.chunks), *shape[1:])

    def compute() -> Tensor:
        found = cut_tensor(tensors[cut.key], cut)
        # A part of a tensor that was put together in memory would keep all of it there.
        return found if is_mapped or cut.num_chunks == 1 else found.clone()

    return DeferredTensor(shape, tensors.dtypes[cut.key], compute)


def _as_convolution(stored: DeferredTensor, patch: Sequence[int]) -> DeferredTensor:
    if len(stored.shape) != 2 or stored.shape[1] != prod(patch):
        return stored
    shape = (stored.shape[0], *patch)
    return DeferredTensor(shape, stored.dtype, lambda: stored.compute().reshape(shape))
