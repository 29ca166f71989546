"""What the planner says of published models, for the guides: no file is read, and nothing is computed."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from reelora.plan import (
    Row,
    TrainingJob,
    catalogued,
    device_facts,
    gibibytes,
    plan_training,
    said,
    with_memory,
)
from reelora.train import PRACTICE, MemoryPlan

__all__ = ["PARTS"]

MODELS = {"2B": "CogVideoX-2B", "5B": "CogVideoX-5B"}
BUDGETS = {"2B": (12, 16, 24, 40), "5B": (16, 24, 40, 80)}
"""GiB."""
STORED: Mapping[str, Mapping[str, Any]] = {
    "`int8` or `fp8`": {"storage": "int8"},
    "`nf4`": {"storage": "nf4"},
    "`stream`": {"stream": True},
}


def planned(name: str, memory: float, **settings: Any) -> list[Row]:
    """A step on one clip with rank 128 within so many GiB, on a processor that has enough: the chosen row, then all.

    Settings are those of `TrainingJob`.
    """
    model = catalogued(name)
    assert model is not None
    device = with_memory(device_facts(torch.device("cpu")), "1000GiB")
    job = TrainingJob.for_model(model.facts, dtype=torch.bfloat16, memory=memory, **settings)
    choice = plan_training(model, device, job, PRACTICE)
    return [choice.chosen_row, *choice.rows]


def total_bytes(row: Row) -> int:
    """Of all tensors at the peak."""
    return sum(row.bytes_by_phase[part] for part in ("base", "adapter", "step"))


def printed(name: str, memory: float) -> str:
    """What a run would print."""
    row = planned(name, memory)[0]
    sizes = row.bytes_by_phase
    plan = MemoryPlan(
        chosen={nn.Identity(): kept for kept, count in row.plan.kept.items() for _ in range(count)},
        why=f"loop.memory = {memory:g} GiB",
        base_bytes=sizes["base"],
        adapter_bytes=sizes["adapter"],
        step_bytes=sizes["step"],
        extra_work=row.plan.extra_work,
    )
    return "".join(f"    {line}\n" for line in str(plan).splitlines())


def table_of_budgets() -> str:
    """What the blocks keep, by model and budget."""
    lines = ["| model | `memory` | blocks | at the peak | more work |", "|---|---|---|---|---|"]
    for name, model in MODELS.items():
        lines += [f"| {name} | {memory} | {_cells(planned(model, memory))} |" for memory in BUDGETS[name]]
    return "\n".join(lines) + "\n"


def table_of_stored_bases() -> str:
    """5B within little memory, by how its base is stored."""
    lines = ["| 5B | `memory` | blocks | at the peak | more work |", "|---|---|---|---|---|"]
    for name, settings in STORED.items():
        lines += [f"| {name} | {memory} | {_cells(planned('CogVideoX-5B', memory, **settings))} |" for memory in (12, 16, 24)]
    return "\n".join(lines) + "\n"


def _cells(rows: list[Row]) -> str:
    chosen = rows[0]
    if not chosen.fits:
        return f"refused: {gibibytes(min(map(total_bytes, rows)))} is the least | |"
    counts = chosen.plan.kept
    kept = said(kept for kept, count in counts.items() for _ in range(count))
    kept = f"all {kept.partition(' ')[2]}" if len(counts) == 1 else kept
    work = f"{chosen.plan.extra_work:.0%}".replace("%", " %") if chosen.plan.extra_work >= 0.005 else ""
    return f"{kept} | {gibibytes(total_bytes(chosen))} | {work}"


def table_of_published() -> str:
    """CogVideo's figures beside what is predicted here, as the planner itself says it."""
    heads = ["| model | clip | published | predicted |", "|---|---|---|---|"]
    lines = [*heads, *map(_published, ("CogVideoX-2B", "CogVideoX-5B", "CogVideoX1.5-5B"))]
    return "\n".join(lines) + "\n"


def _published(name: str) -> str:
    from reelora.plan.published import TRAINING

    figure, model = TRAINING[name], catalogued(name)
    assert model is not None
    size = {"num_frames": figure.num_frames, "height": figure.height, "width": figure.width}
    job = TrainingJob.for_model(model.facts, **size, dtype=torch.bfloat16, gradient_checkpointing=True)
    device = with_memory(device_facts(torch.device("cpu")), "1000GiB")
    row = plan_training(model, device, job, PRACTICE).chosen_row
    clip = " x ".join(map(str, size.values()))
    return f"| {name} | {clip} | {figure.gigabytes:g} GB | {total_bytes(row) / 1e9:.1f} GB |"


PARTS: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "guides/memory.md": {
        "the printed plan": partial(printed, "CogVideoX-2B", 16),
        "plans by memory": table_of_budgets,
        "plans of a stored base": table_of_stored_bases,
    },
    "guides/plan.md": {"published and predicted": table_of_published},
}
"""Parts of pages that are otherwise written by hand, by the names of their marks."""
