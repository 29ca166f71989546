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
from .compare import largest_difference
from .header import PROOF_KEY, header_of, ours_of, peft_config_of
from .pair import Pair
from .read import adapter_of
from .sat_form import sat_tensors
from .source import CONFIG, Source
from .spec import alpha_for

__all__ = ["PROOFS", "WRITTEN", "Written", "write_adapter", "write_with_report"]

WRITTEN: Mapping[str, Layout] = {layout.name: layout for layout in LAYOUTS if layout.is_written}
"""The layouts that can be written, by name."""

PROOFS: Mapping[torch.dtype, float] = {torch.float64: 1e-6, torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-8}
"""Largest relative difference that a written module may have, by the dtype of its file."""


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


def write_with_report(
    adapter: Adapter, path: str | Path, layout: str = "diffusers", *, dtype: torch.dtype | None = None
) -> Written:
    """Write an adapter: ``peft`` makes a new folder, ``sat`` a ``.pt`` file, every other layout one safetensors file.

    What is about to be written is read by the same engine that reads files, and the dense update of every module compared with
    the adapter's; the largest relative difference is the proof, is stored in the header as ``reelora.proof``, and has to be
    within `PROOFS`. Then the file is read back bit by bit. It appears whole or not at all. ``dtype`` None keeps the stored
    ones. Raises UnknownScaleError while the scale is unknown, AdapterError for NaN, infinite values and modules that the layout
    cannot spell, ConfigError for an unknown layout, a wrong ending, or a path that a folder would replace.
    """
    path, row = Path(path), _row(layout)
    _check_path(path, layout)
    adapter.check_usable()
    draft = _DRAFTS.get(layout, _safetensors)(adapter, row, dtype)
    proof = _prove(adapter, draft, path)
    _SAVERS.get(layout, _save_file)(path, draft, proof)
    return Written(path=path, layout=layout, proof=proof, notes=draft.notes)


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """Everything that is about to be written."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    config: Mapping[str, Any] | None = None
    sat_lora: tuple[float, int] | None = None
    notes: tuple[str, ...] = ()


def _row(layout: str) -> Layout:
    if layout not in WRITTEN:
        raise ConfigError(f"No layout that can be written is called {layout!r}: {nearest(layout, WRITTEN)}")
    return WRITTEN[layout]


def _check_path(path: Path, layout: str) -> None:
    ending = {"sat": ".pt", "peft": ""}.get(layout, ".safetensors")
    if path.suffix != ending and ending:
        raise ConfigError(f"{path} has to end in {ending}, the only ending of a {layout} adapter.")
    if layout == "peft" and path.exists():
        raise ConfigError(f"{path} exists: a PEFT adapter is a folder of its own; name a new one.")


def _safetensors(adapter: Adapter, row: Layout, dtype: torch.dtype | None) -> _Draft:
    """Every module under its name in the layout; alpha as a tensor where the layout has one."""
    tensors: dict[str, Tensor] = {}
    for name, pair in adapter.pairs.items():
        parts = _parts(pair, row, dtype)
        tensors |= {_spell(adapter, row, name, slot): tensor for slot, tensor in parts.items()}
    if row.name == "diffusers":
        return _Draft(tensors=tensors, metadata=header_of(adapter), notes=_lost(adapter))
    return _Draft(tensors=tensors, metadata={**_network(adapter), **ours_of(adapter)}, notes=_lost(adapter))


def _parts(pair: Pair, row: Layout, dtype: torch.dtype | None) -> dict[Slot, Tensor]:
    a, b = pair.a.detach().to(dtype or pair.a.dtype), pair.b.detach().to(dtype or pair.b.dtype)
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
        raise AdapterError(
            f"The {row.name} layout has no names for {what}. Layouts with plain paths (diffusers, comfyui) have."
        )
    # kohya numbers the text encoders as soon as there are two of them.
    return key.replace("lora_te_", "lora_te1_", 1) if row.name == "kohya" and "text_encoder_2" in adapter.roles else key


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
    tensors, rank, notes = sat_tensors(adapter, row, dtype)
    return _Draft(tensors=tensors, metadata=ours_of(adapter), sat_lora=(1.0, rank), notes=(*notes, *_lost(adapter)))


def _lost(adapter: Adapter) -> tuple[str, ...]:
    if not adapter.tokens:
        return ()
    return (f"{len(adapter.tokens)} textual-inversion tokens are left out: {first_few([*adapter.tokens])}",)


def _prove(adapter: Adapter, draft: _Draft, path: Path) -> float:
    shapes = {name: tuple(tensor.shape) for name, tensor in draft.tensors.items()}
    source = Source(
        path=path, tensors=draft.tensors, shapes=shapes, metadata=draft.metadata, config=draft.config, sat_lora=draft.sat_lora
    )
    read = adapter_of(source)
    fillers = [pair for name, pair in read.pairs.items() if name not in adapter.pairs]
    assert not any(pair.b.any() for pair in fillers), "what SAT adds is zero"
    shared = {name: pair for name, pair in read.pairs.items() if name in adapter.pairs}
    proof = largest_difference(adapter, replace(read, pairs=shared))
    coarsest = max(PROOFS.get(tensor.dtype, 0.0) for tensor in draft.tensors.values() if tensor.ndim)
    if not proof <= coarsest:
        raise AdapterError(f"Read back, the adapter differs by {proof:.2e} from the one to write: {path} was not made.")
    return proof


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
        write_checkpoint(part, {"module": dict(draft.tensors), "reelora": _proven(draft, proof)})
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
