"""The verb: find, plan, write, check, and say what came of it."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from reelora.adapters import write_adapter
from reelora.components import ModelFiles, check_roles, open_model
from reelora.errors import ConfigError, FileFormatError, first_few, nearest
from reelora.recipes.files import check_parent, check_room
from reelora.recipes.listener import Listener, counted
from reelora.recipes.machine import DTYPES
from reelora.recipes.model import find_model
from reelora.tensorio import atomic_folder, same_bytes

from .plan import Plan
from .to_diffusers import plan_diffusers
from .to_sat import MODEL_YAML, plan_sat
from .values import values_of

__all__ = ["FORMS", "REPORT", "CheckpointOutcome", "convert_checkpoint"]

FORMS = ("diffusers", "sat")
LORAS = ("merge", "beside")
SHARDS = (1, 2, 4, 8)
REPORT = "conversion.json"
"""The report of every key, in the output."""
ADAPTER = "adapter.safetensors"


@dataclass(frozen=True, kw_only=True)
class CheckpointOutcome:
    """What was written."""

    output: Path
    form: str
    roles: tuple[str, ...]
    tensors: int
    size_bytes: int
    seconds: float
    checked: int | None
    """Tensors that were read again and found to be as they should; None where no check was asked for."""
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {**asdict(self), "output": str(self.output)}


def convert_checkpoint(
    source: str | None,
    output: Path,
    *,
    form: str,
    roles: Sequence[str] | None = None,
    sat_config: Sequence[Path] | None = None,
    paths: Mapping[str, Path] | None = None,
    dtype: str = "",
    lora: str = "merge",
    mp: int = 1,
    check: bool = False,
    listener: Listener,
) -> CheckpointOutcome:
    """Write a model, or some of its roles, in diffusers' layout or as a SAT checkpoint; the source stays as it is.

    Nothing of it is built: tensors go from file to file one by one. A LoRA that the source carries is merged into the weights,
    or written ``beside`` them as an adapter. The output appears whole or not at all, with a report of every key in it.
    ``check`` reads everything again before it appears, and converts a SAT checkpoint back.

    Raises ConfigError for settings that cannot be, what ``load_components`` raises for the source, FileFormatError where the
    check finds a difference, OSError that names a file which cannot be written; nothing is left then.
    """
    started = time.perf_counter()
    _check_settings(form, lora, dtype, mp, roles)
    _check_output(output)
    model = open_model(find_model(source) if source else None, roles=_asked(form, roles), sat_config=sat_config, paths=paths)
    merges = lora == "merge"
    plan = _plan(model, output, form=form, dtype=DTYPES[dtype] if dtype else None, merges=merges, mp=mp)
    check_room(plan.size_bytes, output)
    for note in (*_lora_notes(model, lora), *plan.notes):
        listener.say(note)
    with atomic_folder(output) as fresh:
        _write(plan, model, fresh, merges=merges, on_done=counted(listener, "convert", plan.num_tensors))
        checked = _check(plan, model, fresh, form=form, merges=merges, listener=listener) if check else None
    outcome = CheckpointOutcome(
        output=output,
        form=form,
        roles=tuple(model.roles),
        tensors=plan.num_tensors,
        size_bytes=plan.size_bytes,
        seconds=time.perf_counter() - started,
        checked=checked,
        notes=plan.notes,
    )
    listener.say(_line(outcome))
    return outcome


def _asked(form: str, roles: Sequence[str] | None) -> list[str] | None:
    """The roles to find: a SAT config holds the noise schedule, so that comes with the transformer."""
    if roles is None:
        return None
    return list(dict.fromkeys([*roles, *(["scheduler"] if form == "sat" and "transformer" in roles else [])]))


def _plan(model: ModelFiles, output: Path, *, form: str, dtype: torch.dtype | None, merges: bool, mp: int) -> Plan:
    if form == "sat":
        return plan_sat(model, output, dtype=dtype, merges=merges, mp=mp)
    return plan_diffusers(model, output, dtype=dtype, merges=merges)


def _check_settings(form: str, lora: str, dtype: str, mp: int, roles: Sequence[str] | None) -> None:
    for what, value, known in (("form", form, FORMS), ("way with a LoRA", lora, LORAS)):
        if value not in known:
            raise ConfigError(f"There is no {what} {value!r}: {nearest(value, known)}")
    if dtype and dtype not in DTYPES:
        raise ConfigError(f"No dtype is called {dtype!r}: {nearest(dtype, DTYPES)}")
    if mp not in SHARDS:
        raise ConfigError(f"A model divides into {', '.join(map(str, SHARDS))} shards, not into {mp}.")
    if mp > 1 and form != "sat":
        raise ConfigError("Only a SAT checkpoint has model-parallel shards: leave --mp out, or say --to sat.")
    check_roles(roles or ())
    if form == "sat" and roles and not set(roles) - {"scheduler"}:
        raise ConfigError("SAT has no file for a scheduler alone: convert it with the transformer.")


def _check_output(output: Path) -> None:
    if output.exists() or output.is_symlink():
        raise ConfigError(f"{output} is there already and is left as it is; name a new folder.")
    check_parent(output)


def _write(plan: Plan, model: ModelFiles, fresh: Path, *, merges: bool, on_done: Callable[[], object]) -> None:
    for file in plan.files:
        file.write(fresh, on_done)
    for place, write in plan.small.items():
        (fresh / place).mkdir(parents=True, exist_ok=True)
        write(fresh / place)
    if model.adapter and not merges:
        write_adapter(model.adapter, fresh / ADAPTER)
    rows = [row.as_json() for row in plan.rows]
    report = {"source": model.root.name, "notes": plan.notes, "keys": rows}
    (fresh / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _check(plan: Plan, model: ModelFiles, fresh: Path, *, form: str, merges: bool, listener: Listener) -> int:
    """How many tensors were read again; FileFormatError for one that is not what it should be."""
    on_done = counted(listener, "check", plan.num_tensors)
    wrong: list[str] = []
    for file in plan.files:
        written = file.read(fresh)
        wrong += [f"{file.place}: {name}" for name in set(written) ^ set(file.tensors)]
        for name, tensor in file.tensors.items():
            wrong += [] if name not in written or same_bytes(written[name], tensor.compute()) else [f"{file.place}: {name}"]
            on_done()
    if form == "sat" and "transformer" in model.roles:
        wrong += _odd_on_the_way_back(plan, model, fresh, merges=merges)
    if wrong:
        raise FileFormatError(
            f"{plan.output}: {len(wrong)} tensors are not read back as they were written: {first_few(wrong)}. "
            "Memory or disk of this machine are at fault; nothing was kept."
        )
    return plan.num_tensors


def _odd_on_the_way_back(plan: Plan, model: ModelFiles, fresh: Path, *, merges: bool) -> list[str]:
    """Tensors that are others when the new SAT checkpoint is read as one."""
    back = open_model(fresh, roles=["transformer"], sat_config=[fresh / MODEL_YAML]).roles["transformer"].tensors
    dtype = next(iter(back.values())).dtype
    wanted = values_of(model, "transformer", dtype=dtype, merges=merges)
    return [
        f"transformer.{name}"
        for name, tensor in wanted.items()
        if name not in back or not same_bytes(back[name].compute(), tensor.compute())
    ]


def _lora_notes(model: ModelFiles, lora: str) -> list[str]:
    if model.adapter is None:
        return []
    what = "merged into the weights" if lora == "merge" else f"written beside them as {ADAPTER}"
    return [f"The LoRA of the checkpoint is {what}: {len(model.adapter.pairs)} modules, scale by {model.adapter.scale_source}."]


def _line(outcome: CheckpointOutcome) -> str:
    size = f"{outcome.size_bytes / 1e9:.2f} GB in {outcome.seconds:.1f} s"
    checked = "" if outcome.checked is None else f"; {outcome.checked} read again and equal bit by bit"
    return f"{outcome.output}: {outcome.tensors} tensors of {', '.join(outcome.roles)}, {size}{checked}. Every key: {REPORT}."
