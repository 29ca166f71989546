"""The stored weights of one role, without building the network."""

from pathlib import Path

from reelora.errors import ComponentError
from reelora.tensorio import TensorStore, expanded, open_tensors

from .folder import INDEX, locate, open_folder
from .roles import check_roles

__all__ = ["open_weights"]


def open_weights(path_or_id: str | Path, role: str) -> TensorStore:
    """The mapped weights of a role of a model (a folder in diffusers' layout, or a hub id), or of a file or folder of weights.

    Raises as ``load_components`` does for a model, and as ``open_tensors`` does for weights alone.
    """
    check_roles([role])
    path = expanded(path_or_id)
    if path.is_file() or (path.is_dir() and not (path / INDEX).is_file()):
        return open_tensors(path)
    source = locate(open_folder(path_or_id, [role]), role)
    if source.weights is None:
        raise ComponentError(f"{role}: has no weights; name transformer, unet, text_encoder or vae.")
    return open_tensors(source.weights)
