"""Which base an adapter is for."""

from reelora.catalog import ModelFacts, fitting_models, num_layers_of

from .adapter import Adapter, by_role
from .pair import Pair

__all__ = ["base_of", "depth_of_base"]

_CLASSES = {"transformer": "CogVideoXTransformer3DModel", "unet": "UNet2DConditionModel"}


def base_of(adapter: Adapter) -> tuple[tuple[str, ...], str]:
    """The published models that every module fits, and a sentence about it for people."""
    pairs = by_role(adapter.pairs)
    role = next((role for role in _CLASSES if role in pairs), None)
    if role is None:
        return (), "it changes no transformer or unet"
    names = tuple(row.name for row in _rows(role, pairs[role]))
    if not names:
        return (), f"no published model of the catalog has {role} layers of these shapes"
    if len(names) == 1:
        return names, f"the shapes fit {names[0]} alone"
    return names, f"{len(names)} models have these layers, and shapes cannot tell them apart: {', '.join(names)}"


def depth_of_base(adapter: Adapter) -> int | None:
    """Transformer blocks of the CogVideoX that it is for; None if no published one fits, or several of other depths."""
    rows = _rows("transformer", by_role(adapter.pairs).get("transformer", {}))
    depths = {num_layers_of(row) for row in rows}
    return next(iter(depths)) if len(depths) == 1 else None


def _rows(role: str, pairs: dict[str, Pair]) -> tuple[ModelFacts, ...]:
    return fitting_models({path: pair.shape for path, pair in pairs.items()}, _CLASSES[role])
