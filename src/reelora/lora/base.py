"""Which base an adapter was trained on, told from the model's own tensors."""

from collections.abc import Mapping

from torch import Tensor, nn

from reelora.adapters import Adapter
from reelora.errors import MismatchError
from reelora.tensorio import shape_fingerprint, value_fingerprint

__all__ = ["BASE_SHAPES", "BASE_VALUES", "base_fingerprints", "base_notes"]

BASE_SHAPES, BASE_VALUES = "base_shapes", "base_values"
"""Entries of an adapter's provenance."""

_BRANCH = (".lora_a", ".lora_b")


def base_fingerprints(model: nn.Module) -> dict[str, str]:
    """Hashes of the model's shapes and of a sample of its values, over its own names: equal however it is stored or sharded.

    Values are taken as bfloat16, so that a model is the same in every precision it is loaded in. Branches do not count.
    """
    tensors = _base(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return {BASE_SHAPES: shape_fingerprint(shapes), BASE_VALUES: value_fingerprint(tensors)}


def base_notes(adapter: Adapter, model: nn.Module, *, name: str, strict_base: bool = False) -> list[str]:
    """What a user should know about this adapter on this model; nothing where both fingerprints fit or none was stored.

    Other values are normal (a fine-tune of the base) and give a note; with ``strict_base`` they raise MismatchError, as other
    shapes always do.
    """
    told = {key: adapter.provenance[key] for key in (BASE_SHAPES, BASE_VALUES) if key in adapter.provenance}
    if not told:
        return []
    found = base_fingerprints(model)
    if told.get(BASE_SHAPES, found[BASE_SHAPES]) != found[BASE_SHAPES]:
        raise MismatchError(
            f"{name} was trained on a base with other layers than this {type(model).__name__} "
            f"({adapter.provenance.get('base_model', 'unnamed')}): use that one."
        )
    if told.get(BASE_VALUES, found[BASE_VALUES]) == found[BASE_VALUES]:
        return []
    note = f"{name} was trained on other weights than these ({adapter.provenance.get('base_model', 'unnamed')})"
    if strict_base:
        raise MismatchError(f"{note}, and strict_base asks for the same: use that base, or leave strict_base out.")
    return [f"{note}; on a fine-tune of its base that is as it should be"]


def _base(model: nn.Module) -> Mapping[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(_BRANCH)}
