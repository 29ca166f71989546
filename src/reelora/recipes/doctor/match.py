"""Whether an adapter fits a model: what matches, how strong it is and who says so, and what it changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reelora.adapters import PRODUCERS, Adapter, facts_of, open_source, read_adapter
from reelora.components import ROLES, Bundle, load_components
from reelora.errors import AdapterError, UnknownScaleError
from reelora.lora import Rack
from reelora.recipes.listener import Listener
from reelora.recipes.machine import find_device
from reelora.recipes.model import find_model

from .probe import probe

__all__ = ["Diagnosis", "examine"]

_TOLD = ("layout", "producer", "base_note", "roles", "modules", "ranks", "scales", "scale_source", "kind", "dtypes")
_FAINT = 1e-3
"""A relative change of the output that nobody will see."""
_ZERO = "its update is zero, or so small that the model's precision rounds it away"


@dataclass(frozen=True, kw_only=True)
class Change:
    """How far an adapter moves the output of one model, beside the output's own size."""

    role: str
    share: float
    floor: float
    """How far rounding alone moves it."""

    @property
    def is_faint(self) -> bool:
        return 0 < self.share < max(_FAINT, 2 * self.floor)

    @property
    def advice(self) -> str:
        return (
            f"It moves the {self.role} by {self.share:.2%}, rounding alone by {self.floor:.2%}: nobody will see it. "
            "Was its alpha lost or mistaken?"
        )

    def __str__(self) -> str:
        return f"{self.role} changes by {self.share:.2%} (rounding alone: {self.floor:.2%})"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What is known of an adapter on a model."""

    facts: Mapping[str, object]
    problems: tuple[str, ...]
    """Why it cannot act; empty if it does."""
    advice: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {**self.facts, "problems": list(self.problems), "advice": list(self.advice)}


def examine(
    model: str,
    path: str,
    *,
    alpha: float | None = None,
    producer: str | None = None,
    sat_config: Sequence[Path] = (),
    device: str = "auto",
    listener: Listener,
) -> Diagnosis:
    """Try an adapter on a model (as `find_model` takes it): its parts that the adapter is for are loaded and run once.

    An adapter that does not fit is a problem of the diagnosis and no error; raises what reading either raises.
    """
    source = open_source(path)
    adapter = read_adapter(source.path, alpha=alpha, producer=producer, sat_config=tuple(sat_config))
    listener.say(f"Loading {model} ...")
    parts = _load(model, adapter, device)
    told = facts_of(adapter, source.metadata)
    facts = {"model": _named(parts), "adapter": path, **{name: told[name] for name in _TOLD}}
    rack, name = Rack(parts), source.path.name
    try:
        rack.load(name, adapter)
        matched = {"matched": f"all {len(adapter.pairs)} modules", "base_match": list(rack.state.adapters[0].notes) or "fits"}
        changes = _changes(rack, name, parts)
    except AdapterError as error:
        return Diagnosis(facts=facts, problems=(_explained(error),), advice=())
    facts |= matched | {"one tiny forward": [str(change) for change in changes]}
    problems = tuple(f"It changes nothing in the {change.role}: {_ZERO}." for change in changes if not change.share)
    return Diagnosis(facts=facts, problems=problems, advice=tuple(change.advice for change in changes if change.is_faint))


def _load(model: str, adapter: Adapter, device: str) -> Bundle:
    """The roles that the adapter is for, as far as the model has them, and the denoiser, which tells what the model is."""
    found = load_components(find_model(model), roles=[])
    wanted = {found.denoiser, *(role for role in adapter.roles if (found.root / role).is_dir())}
    return load_components(find_model(model), roles=[role for role in ROLES if role in wanted], device=find_device(device))


def _named(parts: Bundle) -> str:
    classes = ", ".join(type(getattr(parts, role)).__name__ for role in parts.roles)
    return f"{parts.root} ({classes})"


def _changes(rack: Rack, name: str, parts: Bundle) -> list[Change]:
    """How far the output of each role moves at strength 1."""
    roles = rack.state.adapters[0].roles
    models = {role: getattr(parts, role) for role in parts.roles if role in roles}
    before = {role: probe(model) for role, model in models.items()}
    with rack.using({name: 1.0}):
        after = {role: probe(model) for role, model in models.items()}
    return [
        Change(role=role, share=_moved(after[role], base), floor=_moved(probe(models[role], nudged=True), base))
        for role, base in before.items()
    ]


def _moved(after: Tensor, before: Tensor) -> float:
    return float(torch.linalg.vector_norm(after - before) / torch.linalg.vector_norm(before))


def _explained(error: AdapterError) -> str:
    if isinstance(error, UnknownScaleError):
        return f"Nothing says how strong it was trained: give --alpha, or --from with who made it ({', '.join(PRODUCERS)})."
    return str(error)
