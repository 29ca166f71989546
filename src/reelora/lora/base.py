"""Which base an adapter was trained on, told from the model's own tensors."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from torch import Tensor, nn

from reelora.adapters import BASE_SHAPES, BASE_VALUES, Adapter, fingerprints_of, split_role
from reelora.errors import MismatchError
from reelora.tensorio import shape_fingerprint

from .branch import StandIn
from .sites import Site, sites_of

__all__ = ["base_fingerprints", "base_notes"]

_BRANCH = (".lora_a", ".lora_b")
_OTHER = "was trained on other weights than these", "on a fine-tune of its base that is as it should be"
_UNKNOWN = "may have been trained on other weights", "these are offloaded or quantised, so that nobody can tell"


def base_fingerprints(model: nn.Module, *, instead: Mapping[str, Tensor] = MappingProxyType({})) -> dict[str, str]:
    """Hashes of the model's shapes and of a sample of its values, over its own names: equal however it is stored or sharded.

    Values are taken as bfloat16, so that a model is the same in every precision it is loaded in. Branches do not count;
    ``instead`` holds pristine weights, by name, where the model has fused ones. Where weights are packed by a quantiser or
    offloaded there is no hash of values.
    """
    unreadable = _unreadable(model)
    tensors = {name: tensor for name, tensor in {**_base(model), **instead}.items() if not _is_packing(name, unreadable)}
    if not unreadable:
        return fingerprints_of(tensors)
    shapes = {name: unreadable.get(name, tuple(tensor.shape)) for name, tensor in tensors.items()}
    return {BASE_SHAPES: shape_fingerprint(shapes)}


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
    if BASE_VALUES not in told or told[BASE_VALUES] == found.get(BASE_VALUES):
        return []
    note, excuse = _OTHER if BASE_VALUES in found else _UNKNOWN
    if strict_base:
        raise MismatchError(f"{name} {note} ({its_base}), and strict_base asks for the same: use that base, or leave it out.")
    return [f"{name} {note} ({its_base}); {excuse}"]


def _unreadable(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The true shapes of weights whose values do not lie in them."""
    sites = [replace(site, module=_original(site)) for site in sites_of({"model": model}).values()]
    return {f"{split_role(site.name)[1]}.weight": site.weight_shape for site in sites if not site.is_readable}


def _original(site: Site) -> nn.Module:
    module = site.module
    while isinstance(module, StandIn):
        module = module.base
    return module


def _is_packing(name: str, unreadable: Mapping[str, object]) -> bool:
    """Whether an entry of ``state_dict`` is what a quantiser keeps beside a packed weight."""
    module, _, rest = name.partition(".weight.")
    stem = module if rest else name.rpartition(".")[0]
    return f"{stem}.weight" in unreadable and name not in (f"{stem}.weight", f"{stem}.bias")


def _base(model: nn.Module) -> Mapping[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(_BRANCH)}
