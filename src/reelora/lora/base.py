"""Which base an adapter was trained on, told from the model's own tensors."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor, nn

from reelora.adapters import BASE_SHAPES, BASE_VALUES, Adapter, fingerprints_of
from reelora.errors import MismatchError

__all__ = ["base_fingerprints", "base_notes"]

_BRANCH = (".lora_a", ".lora_b")


def base_fingerprints(model: nn.Module, *, instead: Mapping[str, Tensor] = MappingProxyType({})) -> dict[str, str]:
    """Hashes of the model's shapes and of a sample of its values, over its own names: equal however it is stored or sharded.

    Values are taken as bfloat16, so that a model is the same in every precision it is loaded in. Branches do not count;
    ``instead`` holds pristine weights, by name, where the model has fused ones.
    """
    return fingerprints_of({**_base(model), **instead})


def base_notes(
    adapter: Adapter, fingerprints: Callable[[], Mapping[str, str]], *, name: str, strict_base: bool = False
) -> list[str]:
    """What a user should know about this adapter on a base with these `base_fingerprints` (asked for only if it stores any).

    Nothing where both fit. Other values are normal (a fine-tune of the base) and give a note; with ``strict_base`` they raise
    MismatchError, as other shapes always do.
    """
    told = {key: adapter.provenance[key] for key in (BASE_SHAPES, BASE_VALUES) if key in adapter.provenance}
    if not told:
        return []
    found = fingerprints()
    its_base = adapter.provenance.get("base_model", "unnamed")
    if told.get(BASE_SHAPES, found[BASE_SHAPES]) != found[BASE_SHAPES]:
        raise MismatchError(f"{name} was trained on a base with other layers than this one ({its_base}): use that one.")
    if told.get(BASE_VALUES, found[BASE_VALUES]) == found[BASE_VALUES]:
        return []
    note = f"{name} was trained on other weights than these ({its_base})"
    if strict_base:
        raise MismatchError(f"{note}, and strict_base asks for the same: use that base, or leave strict_base out.")
    return [f"{note}; on a fine-tune of its base that is as it should be"]


def _base(model: nn.Module) -> Mapping[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(_BRANCH)}
