"""``plan``: what a job takes and how it is best run, before anything is loaded; also for a device that is not here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from reelora.components import load_components
from reelora.plan import (
    Choice,
    DeviceFacts,
    GenerationJob,
    ModelSizes,
    TrainingJob,
    catalogued,
    device_facts,
    plan_generation,
    plan_training,
    pretended,
    sizes_of,
    with_memory,
)
from reelora.tensorio import expanded
from reelora.train import PRACTICE

from .config import TrainConfig
from .machine import DTYPES, Precision, devices_here, find_device, find_dtype
from .model import POCKET, find_model

__all__ = ["plan_job", "plan_run"]


def plan_job(
    model: str,
    *,
    settings: Mapping[str, Any],
    device: str = "auto",
    memory: str = "",
    precision: Precision = "auto",
    sat_config: Sequence[Path] | None = None,
) -> Choice:
    """How videos of a model are best made.

    ``model`` is a folder, pocket, or a hub id: that of a published model needs no file and no connection. ``settings`` are
    those of `GenerationJob` over the model's defaults. ``device`` is one of this machine or one to pretend (``rtx-4090``,
    ``24GiB``, ``cuda``), ``memory`` an amount to pretend that it has.

    Raises ConfigError for settings that the model cannot do, and for devices, amounts and models that are none; what
    `load_components` raises.
    """
    place = _device(device, memory)
    sizes = _sizes(model, sat_config)
    job = GenerationJob.for_model(sizes.facts, dtype=_dtype(precision, place), **settings)
    return plan_generation(sizes, place, job)


def plan_run(config: TrainConfig, *, device: str | None = None, memory: str = "") -> Choice:
    """What a step of a training run takes, by its settings, and what its blocks keep, as the run itself will choose.

    ``device`` and ``memory`` as for `plan_job`, with its errors.
    """
    place = _device(device or config.device, memory)
    sizes = _sizes(config.model, None)
    num_frames, height, width = max(config.data.sizes(sizes.facts), key=lambda size: size[0] * size[1] * size[2])
    job = TrainingJob.for_model(
        sizes.facts,
        num_frames=num_frames,
        height=height,
        width=width,
        batch_size=config.loop.batch_size * (1 + _has_prior(config)),
        gradient_accumulation=config.loop.gradient_accumulation,
        spec=config.lora.spec(),
        optimizer=config.loop.optimizer.kind,
        dtype=_dtype(config.precision, place, is_trained=True),
        storage=config.base.storage,
        stream=config.base.stream,
        has_mean=config.loop.ema_decay > 0,
        memory=config.loop.memory,
        gradient_checkpointing=config.loop.gradient_checkpointing,
    )
    choice = plan_training(sizes, place, job, PRACTICE)
    return replace(choice, notes=(*choice.notes, *_left_out(config)))


def _left_out(config: TrainConfig) -> Iterator[str]:
    """What of a run its plan does not know."""
    if config.text_encoder.rank:
        yield "Text encoders that are trained are not counted."
    if config.loop.shard_base:
        yield "This is for one process: loop.shard_base splits the base over several."


def _has_prior(config: TrainConfig) -> bool:
    """Whether every batch holds as many clips of the class besides."""
    return bool(config.prior.folder or config.prior.count)


def _sizes(model: str, sat_config: Sequence[Path] | None) -> ModelSizes:
    """Files where there are any, else the catalog, else the configs that the hub gives."""
    is_here = model == POCKET or bool(sat_config) or expanded(model).exists()
    known = None if is_here else catalogued(model)
    return known or sizes_of(load_components(find_model(model), roles=[], sat_config=sat_config))


def _device(name: str, memory: str) -> DeviceFacts:
    here = devices_here()
    if name == "auto" or name in here or f"{name}:0" in here:
        found = device_facts(find_device(name), measure=True)
        return with_memory(found, memory) if memory else found
    return pretended(name, memory=memory)


def _dtype(precision: Precision, device: DeviceFacts, *, is_trained: bool = False) -> torch.dtype:
    """As generation and training choose it."""
    if device.is_pretended and not device.is_host:
        usual: Precision = "bf16" if device.has_bf16 or is_trained else "fp16"
        return DTYPES[usual if precision == "auto" else precision]
    return find_dtype(precision, torch.device(device.kind), is_trained=is_trained)
