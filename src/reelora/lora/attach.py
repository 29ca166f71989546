"""Trainable branches on a model, and off again."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from reelora.adapters import Adapter, LoraSpec
from reelora.errors import MismatchError, first_few, nearest

from .branch import StandIn, TrainableLinear, draw_a
from .model import linears_of, role_of, swap, target_linears
from .processors import Processors
from .sharded import is_sharded
from .sites import sites_of
from .summary import AttachSummary
from .together import roads

__all__ = ["attach", "collect", "detach", "load_into"]


@dataclass(frozen=True)
class _Attachment:
    """What the model remembers of an attach, to collect and to undo it."""

    spec: LoraSpec
    branches: Mapping[str, TrainableLinear]
    was_trainable: frozenset[str]
    """Names of parameters. These themselves may be replaced meanwhile, and must not be kept alive."""
    processors: Processors


_MARK = "_reelora_attachment"


def attach(model: nn.Module, spec: LoraSpec | object, *, seed: int = 0) -> AttachSummary:
    """Freeze a model and put a trainable branch beside every Linear that ``spec`` (or a ``peft.LoraConfig``) targets.

    The output stays bit for bit what it was, since B is zero; A and B are float32 parameters on the device of their Linear,
    A drawn from ``seed``, the same on every device. Raises ConfigError for settings that no LoRA can have, MismatchError for
    targets that the model lacks and for a model that has branches already; then nothing has changed. Inverse: `detach`.
    """
    role = role_of(model)
    spec = spec if isinstance(spec, LoraSpec) else LoraSpec.from_peft(spec)
    _check_bare(model)
    linears = target_linears(model, spec)
    branches = _branches(linears, spec, seed)
    frozen = list(model.parameters())
    trainable = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    sites = sites_of({role: model})
    processors = Processors({role: model})
    swap(model, branches)
    processors.serve(sites[f"{role}.{path}"] for path in linears)
    vars(model)[_MARK] = _Attachment(spec, branches, trainable, processors)
    for parameter in frozen:
        parameter.requires_grad_(False)
    shapes = {path: (linear.out_features, linear.in_features) for path, linear in linears.items()}
    return AttachSummary(
        model_class=type(model).__name__,
        role=role,
        spec=spec,
        shapes=shapes,
        roads=roads(model),
        trainable_parameters=sum(branch.lora_a.numel() + branch.lora_b.numel() for branch in branches.values()),
        total_parameters=sum(parameter.numel() for parameter in model.parameters()),
        advice=spec.advice(shapes, model_class=type(model).__name__),
    )


def detach(model: nn.Module) -> None:
    """Take the branches off: the original module objects are back, and trainable again is what was trainable before.

    Raises MismatchError if nothing is attached, if something else was put around the branches since, or if
    the base was split over processes.
    """
    attachment = _attachment(model)
    if is_sharded(model):
        raise MismatchError("The base of this model is split over processes, which cannot be undone: load the model again.")
    covered = [path for path, branch in attachment.branches.items() if model.get_submodule(path) is not branch]
    if covered:
        raise MismatchError(
            f"{len(covered)} branches are wrapped by something else ({first_few(covered)}): leave `using` or unload that first."
        )
    swap(model, {path: branch.release() for path, branch in attachment.branches.items()})
    attachment.processors.serve(())
    del vars(model)[_MARK]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in attachment.was_trainable)


def collect(model: nn.Module, *, provenance: Mapping[str, str] | None = None) -> Adapter:
    """The weights of the attached branches as an adapter: float32 copies on the CPU, named with the model's role in front."""
    attachment, role = _attachment(model), role_of(model)
    spec = attachment.spec
    return Adapter(
        pairs={f"{role}.{path}": branch.pair() for path, branch in attachment.branches.items()},
        spec=spec,
        layout="memory",
        scale_source=f"trained here with alpha {spec.alpha:g}, rank {spec.rank}",
        provenance=provenance or {},
    )


def load_into(model: nn.Module, adapter: Adapter) -> None:
    """Put an adapter's weights into the attached branches, to go on training it.

    Raises MismatchError unless it has exactly the modules, ranks and scales of the branches, UnknownScaleError if it does not
    know its scale, AdapterError for NaN, infinite values and a DoRA; then nothing has changed.
    """
    adapter.check_usable()
    adapter.check_plain()
    role = role_of(model)
    branches = {f"{role}.{path}": branch for path, branch in _attachment(model).branches.items()}
    if problems := _load_problems(adapter, branches):
        raise MismatchError("This adapter does not fit what is attached:\n" + "\n".join(f"- {line}" for line in problems))
    with torch.no_grad():
        for name, branch in branches.items():
            branch.lora_a.copy_(adapter.pairs[name].a)
            branch.lora_b.copy_(adapter.pairs[name].b)


def _branches(linears: Mapping[str, nn.Linear], spec: LoraSpec, seed: int) -> dict[str, TrainableLinear]:
    generator = torch.Generator().manual_seed(seed)
    return {
        path: TrainableLinear(
            linear,
            draw_a(spec.rank_of(path), linear.in_features, spec, generator),
            scale=spec.scale_of(path),
            dropout=spec.dropout,
        )
        for path, linear in linears.items()
    }


def _attachment(model: nn.Module) -> _Attachment:
    if attachment := vars(model).get(_MARK):
        return attachment
    raise MismatchError(
        f"Nothing is attached to this {type(model).__name__}: attach first, and give the model itself, no wrapper."
    )


def _check_bare(model: nn.Module) -> None:
    held = [path for path, linear in linears_of(model).items() if isinstance(linear, StandIn)]
    if held:
        raise MismatchError(f"This model has {len(held)} branches already ({first_few(held)}): detach or leave `using` first.")


def _load_problems(adapter: Adapter, branches: Mapping[str, TrainableLinear]) -> list[str]:
    problems = []
    if strange := [name for name in adapter.pairs if name not in branches]:
        problems.append(f"{len(strange)} modules have no branch: {first_few(strange)}; {nearest(strange[0], branches)}")
    if missing := [name for name in branches if name not in adapter.pairs]:
        problems.append(f"{len(missing)} branches have no pair in it: {first_few(missing)}")
    for name in adapter.pairs.keys() & branches.keys():
        pair, branch = adapter.pairs[name], branches[name]
        if (pair.a.shape, pair.b.shape) != (branch.lora_a.shape, branch.lora_b.shape):
            problems.append(f"{name} is {pair.shape} of rank {pair.rank}, attached is rank {branch.lora_a.shape[0]}")
        elif pair.scale != branch.scale:
            problems.append(f"{name} was trained at scale {pair.scale}, attached is {branch.scale}: attach with its alpha")
    return sorted(problems)
