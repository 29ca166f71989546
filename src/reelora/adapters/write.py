"""Adapters into files, with proof."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reelora.errors import AdapterError, ConfigError, first_few, nearest
from reelora.layouts import LAYOUTS, Layout, Slot
from reelora.tensorio import atomic_folder, atomic_path, open_checkpoint, open_tensors, write_checkpoint, write_tensors

from .adapter import Adapter, by_role
from .compare import differences
from .header import PROOF_KEY, header_of, ours_of, peft_config_of
from .pair import Pair
from .read import adapter_of
from .sat_form import sat_tensors
from .source import CONFIG, NOTES, Source
from .spec import alpha_for
from .threads import one_thread

__all__ = ["PROOFS", "WRITTEN", "Written", "check_destination", "write_adapter", "write_with_report"]

WRITTEN: Mapping[str, Layout] = {layout.name: layout for layout in LAYOUTS if layout.is_written}
"""The layouts that can be written, by name."""

PROOFS: Mapping[torch.dtype, float] = {torch.float64: 1e-6, torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-8}
"""Largest relative difference that a written module may have, by the coarser dtype of its A and B."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written and how exact it is."""

    path: Path
    layout: str
    proof: float
    """The largest relative difference (Frobenius) of any module's update from the adapter's."""
    notes: tuple[str, ...]
    """Everything that the layout could not hold as it was."""


def write_adapter(adapter: Adapter, path: str | Path, layout: str = "diffusers", *, dtype: torch.dtype | None = None) -> float:
    """Write an adapter in a dialect, read it back, and return the proof; see `write_with_report`."""
    return write_with_report(adapter, path, layout, dtype=dtype).proof


@one_thread()
def write_with_report(
    adapter: Adapter, path: str | Path, layout: str = "diffusers", *, dtype: torch.dtype | None = None
) -> Written:
    """Write an adapter: ``peft`` makes a new folder, ``sat`` a ``.pt`` file, every other layout one safetensors file.

    What is about to be written is read by the same engine that reads files, and the dense update of every module compared with
    the adapter's; the largest relative difference is the proof, is stored in the header as ``reelora.proof``, and has to be
    within `PROOFS`. Then the file is read back bit by bit. It appears whole or not at all. ``dtype`` None keeps the stored
    ones. Raises UnknownScaleError while the scale is unknown, AdapterError for NaN, infinite values, modules that the layout
    cannot spell and DoRAs that its readers take for something else, ConfigError for an unknown layout, a dtype without a proof,
    a wrong ending, or a path that a folder would replace.
    """
    path, row = Path(path), _row(layout)
    check_destination(path, layout)
    if dtype is not None and dtype not in PROOFS:
        raise ConfigError(f"dtype is {dtype}: it has to be one of {', '.join(map(str, PROOFS))}.")
    adapter.check_usable()
    draft = _DRAFTS.get(layout, _safetensors)(adapter, row, dtype)
    if dtype is not None or layout == "sat":  # elsewhere the values are the adapter's own
        _check_range(draft)
    proof = _prove(adapter, draft, path)
    _SAVERS.get(layout, _save_file)(path, draft, proof)
    return Written(path=path, layout=layout, proof=proof, notes=draft.notes)


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """Everything that is about to be written."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    config: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def _row(layout: str) -> Layout:
    if layout not in WRITTEN:
        raise ConfigError(f"No layout that can be written is called {layout!r}: {nearest(layout, WRITTEN)}")
    return WRITTEN[layout]


def check_destination(path: Path, layout: str) -> None:
    """Raise ConfigError for a path that an adapter of this layout cannot have: a wrong ending, or a folder that exists."""
    ending = {"sat": ".pt", "peft": ""}.get(layout, ".safetensors")
    if path.suffix != ending and ending:
        raise ConfigError(f"{path} has to end in {ending}, the only ending of a {layout} adapter.")
    if layout == "peft" and path.exists():
        raise ConfigError(f"{path} exists: a PEFT adapter is a folder of its own; name a new one.")


def _safetensors(adapter: Adapter, row: Layout, dtype: torch.dtype | None) -> _Draft:
    """Every module under its name in the layout; alpha as a tensor where the layout has one."""
    _check_doras(adapter, row)
    tensors: dict[str, Tensor] = {}
    for name, pair in adapter.pairs.items():
        parts = _parts(pair, row, dtype)
        tensors |= {_spell(adapter, row, name, slot): tensor for slot, tensor in parts.items()}
    if row.name == "diffusers":
        return _Draft(tensors=tensors, metadata=header_of(adapter), notes=_changes(adapter, dtype))
    return _Draft(tensors=tensors, metadata={**_network(adapter), **ours_of(adapter)}, notes=_changes(adapter, dtype))


def _parts(pair: Pair, row: Layout, dtype: torch.dtype | None) -> dict[Slot, Tensor]:
    a, b = (factor.to(dtype or factor.dtype) for factor in (pair.a.detach(), pair.b.detach()))
    if pair.kernel:
        ones = (1,) * len(pair.kernel)
        a, b = a.reshape(pair.rank, -1, *pair.kernel), b.reshape(*b.shape, *ones)
    parts: dict[Slot, Tensor] = {"A": a.contiguous(), "B": b.contiguous()}
    if row.name not in ("diffusers", "peft"):
        parts["alpha"] = _alpha(pair)
    if pair.magnitude:
        is_peft = pair.magnitude.made_by == "PEFT"
        values = pair.magnitude.values if is_peft or pair.magnitude.axis == "in" else pair.magnitude.values[:, None]
        parts["magnitude" if is_peft else "dora_scale"] = values if is_peft or values.ndim > 1 else values[None]
    return parts


def _alpha(pair: Pair) -> Tensor:
    """alpha = scale * rank, in float32 where that gives the scale back, else in float64."""
    assert pair.scale is not None, "check_usable comes first"
    alpha = torch.tensor(alpha_for(pair.scale, pair.rank), dtype=torch.float64)
    return alpha.float() if float(alpha.float()) / pair.rank == pair.scale else alpha


def _spell(adapter: Adapter, row: Layout, name: str, slot: Slot) -> str:
    key = row.grammar.spell(name, slot)
    if key is None:
        lost = [name for name in adapter.pairs if row.grammar.spell(name, "A") is None]
        what = f"{len(lost)} modules, first {first_few(lost)}" if lost else f"the {slot} of {name}"
        raise AdapterError(f"The {row.name} layout has no names for {what}. {_advised(adapter)}")
    # kohya numbers the text encoders as soon as there are two of them.
    return key.replace("lora_te_", "lora_te1_", 1) if row.name == "kohya" and "text_encoder_2" in adapter.roles else key


def _check_doras(adapter: Adapter, row: Layout) -> None:
    """Raise AdapterError for norms that the readers of a layout drop or take for other norms."""
    doras = {name: pair.magnitude for name, pair in adapter.pairs.items() if pair.magnitude}
    if lost := [name for name, norms in doras.items() if (norms.made_by, norms.axis) not in row.doras]:
        raise AdapterError(
            f"{len(lost)} pairs are a {doras[lost[0]]}, which programs that read {row.name} drop or take for another one: "
            f"{first_few(lost)}. {_advised(adapter)}"
        )
    for role, pairs in by_role(adapter.pairs).items():
        plain = [path for path, pair in pairs.items() if not pair.magnitude]
        if 0 < len(plain) < len(pairs) and ("PEFT", "out") in row.doras:
            raise AdapterError(
                f"{len(plain)} of {len(pairs)} pairs of the {role} are no DoRA: {first_few(plain)}. "
                f"In a {row.name} adapter all pairs of a role are DoRAs (use_dora), or none."
            )


def _advised(adapter: Adapter) -> str:
    """Which layouts could hold all of an adapter."""
    doras = {(pair.magnitude.made_by, pair.magnitude.axis) for pair in adapter.pairs.values() if pair.magnitude}
    able = [
        row.name
        for row in WRITTEN.values()
        if doras <= row.doras and all(row.grammar.spell(name, "A") for name in adapter.pairs)
        if row.name != "peft" or len(adapter.roles) == 1
    ]
    return f"Layouts that can hold it: {', '.join(able)}." if able else "No layout that can be written holds it."


def _check_range(draft: _Draft) -> None:
    """Raise AdapterError for values that the dtype of the file cannot hold; those of the adapter are finite."""
    if lost := [name for name, tensor in draft.tensors.items() if not torch.isfinite(tensor).all()]:
        raise AdapterError(
            f"{len(lost)} tensors hold values too large for {draft.tensors[lost[0]].dtype}: {first_few(lost)}. "
            "Choose a dtype with a wider range (bf16 or fp32)."
        )


def _network(adapter: Adapter) -> dict[str, str]:
    """What kohya's tools look for in a header; a rank or alpha that is not one number is a word there."""
    ranks = {pair.rank for pair in adapter.pairs.values()}
    alphas = {alpha_for(pair.scale, pair.rank) for pair in adapter.pairs.values() if pair.scale is not None}
    one = {"ss_network_dim": ranks, "ss_network_alpha": alphas}
    numbers = {key: f"{next(iter(values)):.17g}" if len(values) == 1 else "Dynamic" for key, values in one.items()}
    return {"format": "pt", "ss_network_module": "networks.lora", **numbers}


def _peft(adapter: Adapter, row: Layout, dtype: torch.dtype | None) -> _Draft:
    if len(adapter.roles) != 1:
        raise AdapterError(f"A PEFT folder holds one part of a pipeline, the adapter has {', '.join(adapter.roles)}.")
    draft = _safetensors(adapter, row, dtype)
    (pairs,) = by_role(adapter.pairs).values()
    base = adapter.provenance.get("base_model")
    config = {**peft_config_of(adapter.spec, pairs), "base_model_name_or_path": base, "inference_mode": True}
    return _Draft(tensors=draft.tensors, metadata={"format": "pt", **ours_of(adapter)}, config=config, notes=draft.notes)


def _sat(adapter: Adapter, row: Layout, dtype: torch.dtype | None) -> _Draft:
    tensors, notes = sat_tensors(adapter, row, dtype)
    return _Draft(tensors=tensors, metadata={"lora_alpha": "1", **ours_of(adapter)}, notes=(*notes, *_changes(adapter, dtype)))


def _changes(adapter: Adapter, dtype: torch.dtype | None) -> tuple[str, ...]:
    """What is not written as it was stored."""
    whole = [name for name, pair in adapter.pairs.items() if pair.kind in ("LoHa", "LoKr")]
    small = [name for name, pair in adapter.pairs.items() if pair.dtype.itemsize == 1 and dtype is None]
    changes = {
        "textual-inversion tokens are left out": [*adapter.tokens],
        "modules of LoHa or LoKr are multiplied out into LoRAs, which are larger": whole,
        "modules of eight bits are written in bfloat16, which holds the same values": [n for n in small if n not in whole],
    }
    return tuple(f"{len(names)} {what}: {first_few(names)}" for what, names in changes.items() if names)


def _prove(adapter: Adapter, draft: _Draft, path: Path) -> float:
    shapes = {name: tuple(tensor.shape) for name, tensor in draft.tensors.items()}
    dtypes = {name: tensor.dtype for name, tensor in draft.tensors.items()}
    source = Source(
        path=path, tensors=draft.tensors, shapes=shapes, dtypes=dtypes, metadata=draft.metadata, config=draft.config
    )
    read = adapter_of(source)
    fillers = [pair for name, pair in read.pairs.items() if name not in adapter.pairs]
    assert not any(pair.b.any() for pair in fillers), "what SAT adds is zero"
    shared = {name: pair for name, pair in read.pairs.items() if name in adapter.pairs}
    found = differences(adapter, replace(read, pairs=shared))
    if far := [f"{name} ({found[name]:.2e})" for name, pair in shared.items() if found[name] > _bar(pair)]:
        raise AdapterError(
            f"Read back, {len(far)} of {len(found)} modules differ from those to write: {first_few(far)}. {path} was not made."
        )
    return max(found.values())


def _bar(pair: Pair) -> float:
    return max(PROOFS.get(factor.dtype, 0.0) for factor in (pair.a, pair.b))


def _save_file(path: Path, draft: _Draft, proof: float) -> None:
    with atomic_path(path) as part:
        write_tensors(part, draft.tensors, metadata=_proven(draft, proof))
        _check_bits(open_tensors(part), draft, path)


def _save_folder(path: Path, draft: _Draft, proof: float) -> None:
    with atomic_folder(path) as part:
        write_tensors(part / "adapter_model.safetensors", draft.tensors, metadata=_proven(draft, proof))
        (part / CONFIG).write_text(json.dumps(draft.config, indent=2, sort_keys=True) + "\n")
        _check_bits(open_tensors(part / "adapter_model.safetensors"), draft, path)


def _save_checkpoint(path: Path, draft: _Draft, proof: float) -> None:
    with atomic_path(path) as part:
        write_checkpoint(part, {"module": dict(draft.tensors), NOTES: _proven(draft, proof)})
        _check_bits(open_checkpoint(part, root="module"), draft, path)


def _proven(draft: _Draft, proof: float) -> dict[str, str]:
    return {**draft.metadata, PROOF_KEY: f"{proof:.3g}"}


def _check_bits(stored: Mapping[str, Tensor], draft: _Draft, path: Path) -> None:
    if stored.keys() != draft.tensors.keys() or not all(_same(stored[name], draft.tensors[name]) for name in stored):
        raise AdapterError(f"Read back, the file has other values than were written: the disk is broken; {path} was not made.")


def _same(stored: Tensor, wanted: Tensor) -> bool:
    return stored.dtype == wanted.dtype and torch.equal(stored, wanted)


_DRAFTS: Mapping[str, Callable[[Adapter, Layout, torch.dtype | None], _Draft]] = {"peft": _peft, "sat": _sat}
_SAVERS: Mapping[str, Callable[[Path, _Draft, float], None]] = {"peft": _save_folder, "sat": _save_checkpoint}
