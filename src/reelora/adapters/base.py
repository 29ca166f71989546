"""Which base an adapter is for: told from its shapes, and from the fingerprint of its base where it stores one."""

from collections.abc import Mapping

from torch import Tensor

from reelora.catalog import SHAPE_FINGERPRINTS, ModelFacts, fitting_models, num_layers_of
from reelora.tensorio import shape_fingerprint, value_fingerprint

from .adapter import Adapter, by_role
from .pair import Pair

__all__ = ["BASE_SHAPES", "BASE_VALUES", "base_of", "compared_with_base", "depth_of_base", "fingerprints_of"]

BASE_SHAPES, BASE_VALUES = "base_shapes", "base_values"
"""Entries of the provenance of an adapter that knows its base."""

_CLASSES = {"transformer": "CogVideoXTransformer3DModel", "unet": "UNet2DConditionModel"}


def base_of(adapter: Adapter) -> tuple[tuple[str, ...], str]:
    """The published models that every module fits, and a sentence about it for people."""
    pairs = by_role(adapter.pairs)
    role = next((role for role in _CLASSES if role in pairs), None)
    if role is None:
        return (), "it changes no transformer or unet"
    names = tuple(row.name for row in _rows(role, pairs[role]))
    if not names:
        return (), f"none of the models that this version knows has {role} layers of these names and shapes"
    if len(names) == 1:
        return names, f"the shapes fit {names[0]} alone"
    if told := [name for name in names if SHAPE_FINGERPRINTS.get(name) == adapter.provenance.get(BASE_SHAPES, "")]:
        return tuple(told), f"the shapes of its modules fit {len(names)} models, the fingerprint of its base {told[0]} alone"
    return names, f"{len(names)} models have these layers, and shapes cannot tell them apart: {', '.join(names)}"


def fingerprints_of(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """The entries that tell the base with these weights: equal however they are stored; at most a megabyte is read."""
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return {BASE_SHAPES: shape_fingerprint(shapes), BASE_VALUES: value_fingerprint(weights)}


def compared_with_base(adapter: Adapter, weights: Mapping[str, Tensor]) -> str:
    """What the fingerprints that an adapter stores say of these weights, in words."""
    told = {key: adapter.provenance[key] for key in (BASE_SHAPES, BASE_VALUES) if key in adapter.provenance}
    if not told:
        return "the adapter stores no fingerprint of its base"
    found = fingerprints_of(weights)
    if told.get(BASE_SHAPES, found[BASE_SHAPES]) != found[BASE_SHAPES]:
        return "another model than the one it was trained on: other layers"
    if told.get(BASE_VALUES, found[BASE_VALUES]) != found[BASE_VALUES]:
        return "the layers that it was trained on, with other weights: another fine-tune of its base"
    return "the weights that it was trained on"


def depth_of_base(adapter: Adapter) -> int | None:
    """Transformer blocks of the CogVideoX that it is for; None if no published one fits, or several of other depths."""
    rows = _rows("transformer", by_role(adapter.pairs).get("transformer", {}))
    depths = {num_layers_of(row) for row in rows}
    return next(iter(depths)) if len(depths) == 1 else None


def _rows(role: str, pairs: dict[str, Pair]) -> tuple[ModelFacts, ...]:
    return fitting_models({path: pair.shape for path, pair in pairs.items()}, _CLASSES[role])
