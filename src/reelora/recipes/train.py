"""``train``: from a folder of clips to an adapter in a file."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from reelora import __version__
from reelora.adapters import Adapter, content_hash, write_adapter
from reelora.components import Bundle, fingerprint_of
from reelora.data import BatchPlan, CachedClips
from reelora.errors import ConfigError
from reelora.lora import AttachSummary
from reelora.train import (
    Diffusion,
    Lesson,
    MakeBoard,
    MemoryPlan,
    Prior,
    StepReport,
    Team,
    TensorBoard,
    TrainResult,
    Verdict,
    check_compiler,
    check_continues,
    check_team,
    compiled_rows,
    only_run_in,
    read_verdicts,
    showing_best,
    skipped_checkpoints,
    weights_and_biases,
)
from reelora.train import train as run_loop

from .adapter_texts import read_adapters
from .class_clips import check_class_clips, class_data
from .conditions import Kind, conditions_for, precompute_kind
from .config import DataConfig, TrainConfig
from .files import check_folder, write_text
from .listener import Listener, StopsOnly
from .machine import DTYPES, find_device, find_dtype, name_of_dtype
from .model import denoiser_of, facts_of, find_model, text_fingerprint_of
from .precompute import plan_data
from .previews import Previews, check_previews
from .run_report import write_run_report
from .trained import Trained, check_trained, load_trained

__all__ = ["TrainOutcome", "train"]


@dataclass(frozen=True, kw_only=True)
class TrainOutcome:
    """How a run ended and where its files are."""

    result: TrainResult
    summary: AttachSummary
    """Of the denoiser."""
    adapter: Path
    """Written when the run is complete."""
    best: Path
    """The weights that did best on the held-out clips; written where they are others than the last."""
    report: Path
    held_out: tuple[str, ...]
    """Names of the clips that were held out."""
    verdict: Verdict | None
    """What the held-out clips say; None where there are none."""
    is_first: bool
    """Whether this process is the one that writes; one that trains alone is."""


def train(config: TrainConfig, *, listener: Listener, report_name: str = "report.html") -> TrainOutcome:
    """Precompute what the cache lacks, then train, or go on with the run that ``config.output`` holds.

    Leaves ``adapter.safetensors``, ``metrics.jsonl``, ``checkpoints/``, ``report.html`` and ``config.toml`` there. While the
    denoiser trains, the VAE is not in memory, nor is a text encoder that is not trained. Wrong settings are refused before any
    work. Started by ``accelerate launch`` or ``torchrun``, the processes share the work and the first one writes.
    """
    boards = _boards(config)
    _check_early(config)
    with Team.joined(find_device(config.device)) as team:
        if team.is_first:
            with only_run_in(config.output):
                return _train(config, boards, team, listener, report_name)
        return _train(config, (), team, StopsOnly(listener), report_name)


def _train(
    config: TrainConfig, boards: tuple[MakeBoard, ...], team: Team, listener: Listener, report_name: str
) -> TrainOutcome:
    check_team(config.loop, team)
    with team.first_alone():
        made = class_data(config, device=team.device, listener=listener)
        own, *classes = [_precomputed(config, data, team, listener) for data in (config.data, *made)]
    seen, held_out = own.clips.split(config.data.held_out, seed=config.loop.seed)
    begun = _begun(config)
    identity = _identity(config, seen, team) | _extra_identity(config, classes, begun)
    check_continues(config.output, identity, config.loop)
    _say_sizes(config, seen, held_out, listener)
    with team.first_alone():
        previews = Previews(config, listener, team)
    trained = _load_trained(config, team, listener)
    if begun is not None:
        trained.begin_from(begun)
        listener.say(f"{'begins':<10} with {config.init_from}; scale by {begun.scale_source}")
    make_conditions = partial(conditions_for, trained.model, config=config, device=team.device, listener=listener)
    lesson = Lesson(
        model=trained.model,
        clips=seen,
        held_out=held_out,
        diffusion=Diffusion.of(trained.parts.scheduler),
        identity=identity,
        conditions=make_conditions(own),
        priors=[Prior(clips=kind.clips, weight=config.prior.weight, conditions=make_conditions(kind)) for kind in classes],
        rates=config.rates(),
    )
    result = _run(lesson, config, boards, team, previews, trained.parts, listener)
    verdict = next(reversed(read_verdicts(config.output)), None)
    adapter, best = config.output / "adapter.safetensors", config.output / "adapter-best.safetensors"
    if team.is_first:
        if result.is_complete:
            _write_adapters(trained, result, config, adapter, best, _provenance(config, trained.bases, seen))
        write_run_report(config, trained.rows, seen, held_out, previews.figures(), name=report_name)
    return TrainOutcome(
        result=result,
        summary=trained.summaries[0],
        adapter=adapter,
        best=best,
        report=config.output / report_name,
        held_out=tuple(held_out.sources),
        is_first=team.is_first,
        verdict=verdict,
    )


def _precomputed(config: TrainConfig, data: DataConfig, team: Team, listener: Listener) -> Kind:
    plan = plan_data(config.model, data, listener=listener)
    return precompute_kind(plan, config, device=team.device, listener=listener)[1]


def _begun(config: TrainConfig) -> Adapter | None:
    """The adapter to go on with; None where the run begins anew."""
    if not config.init_from:
        return None
    ((adapter, strength),) = read_adapters([config.init_from]).values()
    if strength != 1:
        raise ConfigError(f"init_from {config.init_from}: an adapter goes on at its own strength; leave ={strength:g} out.")
    return adapter


def _extra_identity(config: TrainConfig, classes: Sequence[Kind], begun: Adapter | None) -> dict[str, object]:
    """What else the numbers depend on, of runs that have it."""
    extras: dict[str, object] = {}
    if classes:
        extras["prior"] = {"data": [kind.clips.data_hash for kind in classes], "weight": config.prior.weight}
    if config.text_encoder.rank:
        extras["text_encoder"] = [config.text_encoder.identity(), text_fingerprint_of(config.model)]
    if begun is not None:
        extras["init_from"] = content_hash(begun)
    if config.base.storage != "precision":
        extras["base_storage"] = config.base.storage
    if facts_of(config.model).needs_image:
        extras["image"] = config.image.model_dump(mode="json")
    return extras


def _boards(config: TrainConfig) -> tuple[MakeBoard, ...]:
    local = (TensorBoard,) if config.tensorboard else ()
    return (*local, weights_and_biases(config.wandb)) if config.wandb else local


def _check_early(config: TrainConfig) -> None:
    """Raise for everything that can be known to be wrong before clips are encoded."""
    find_dtype(config.precision, find_device(config.device), is_trained=True)
    check_folder(config.output)
    config.data.sizes(facts_of(config.model))
    check_trained(config)
    check_class_clips(config)
    check_previews(config)
    if config.loop.compile:
        check_compiler(find_device(config.device))


def _identity(config: TrainConfig, seen: CachedClips, team: Team) -> dict[str, object]:
    """What the numbers of a run depend on besides the loop's settings."""
    return {
        "base": fingerprint_of(find_model(config.model), denoiser_of(config.model)),
        "data": seen.data_hash,
        "lora": config.lora.model_dump(mode="json"),
        "dtype": name_of_dtype(find_dtype(config.precision, team.device, is_trained=True)),
    }


def _say_sizes(config: TrainConfig, seen: CachedClips, held_out: CachedClips, listener: Listener) -> None:
    listener.say(f"{'clips':<10} {len(seen)} to train on, {len(held_out)} held out")
    size = config.loop.batch_size
    for name in BatchPlan(seen, batch_size=size, seed=config.loop.seed).small_buckets:
        listener.say(f"{'advice':<10} {name} has fewer clips than a batch of {size}, which then holds some twice")


def _file_size(trained: Trained, config: TrainConfig) -> str:
    sizes = {name: trained.num_parameters * DTYPES[name].itemsize / 1e6 for name in ("fp32", "bf16")}
    return f"adapter.safetensors will have {sizes[config.dtype]:.1f} MB ({', '.join(f'{k} {v:.1f}' for k, v in sizes.items())})"


def _run(
    lesson: Lesson,
    config: TrainConfig,
    boards: tuple[MakeBoard, ...],
    team: Team,
    previews: Previews,
    parts: Bundle,
    listener: Listener,
) -> TrainResult:
    def on_plan(plan: MemoryPlan) -> None:
        for label, text in [*plan.rows(), *compiled_rows(lesson.model, config.loop)]:
            listener.say(f"{label:<10} {text}")

    def on_start(step: int) -> None:
        if team.is_first:
            write_text(config.output / "config.toml", config.toml())
        for path in skipped_checkpoints(config.output / "checkpoints", step):
            listener.say(f"{'damaged':<10} {path}, which is passed over")
        if step == 0:
            previews.after(0, parts)
        elif step < config.loop.steps:
            listener.say(f"{'goes on':<10} after step {step} of {config.loop.steps}")

    def on_step(report: StepReport) -> None:
        listener.progress("train", report.step, config.loop.steps, _line(report))
        if report.verdict is not None:
            listener.say(f"step {report.step}: {report.verdict}")
        previews.after(report.step, parts)

    with listener.stopping() as should_stop:
        return run_loop(
            lesson,
            config.loop,
            config.output,
            team=team,
            boards=boards,
            on_plan=on_plan,
            on_start=on_start,
            on_step=on_step,
            should_stop=should_stop,
        )


def _load_trained(config: TrainConfig, team: Team, listener: Listener) -> Trained:
    dtype = find_dtype(config.precision, team.device, is_trained=True)
    trained = load_trained(config, dtype=dtype, device=team.device)
    many = f", {team.size} processes" if team.size > 1 else ""
    absent = "the VAE is" if config.text_encoder.rank else "text encoder and VAE are"
    where = f"{config.model} on {team.device}, {name_of_dtype(dtype)}{many}"
    listener.say(f"{'base':<10} {where}; {absent} not in memory")
    for label, text in trained.rows:
        listener.say(f"{label:<10} {text}")
    listener.say(f"{'file':<10} {_file_size(trained, config)}")
    return trained


def _write_adapters(
    trained: Trained, result: TrainResult, config: TrainConfig, adapter: Path, best: Path, provenance: Mapping[str, str]
) -> None:
    """The last weights, and those that did best on the held-out clips where these are others."""
    dtype = DTYPES[config.dtype]
    write_adapter(trained.collect(provenance=provenance), adapter, dtype=dtype)
    best.unlink(missing_ok=True)
    if result.best_step not in (None, 0, result.step):
        with showing_best(trained.model, config.output, result.best_step):
            write_adapter(trained.collect(provenance=provenance), best, dtype=dtype)


def _provenance(config: TrainConfig, bases: Mapping[str, str], seen: CachedClips) -> Mapping[str, str]:
    return {
        "version": __version__,
        "base_model": Path(config.model).name,
        **bases,
        **({"base_storage": config.base.storage} if config.base.storage != "precision" else {}),
        "data_hash": seen.data_hash,
        "config_hash": _config_hash(config),
        "trigger_words": ", ".join(config.trigger_words),
    }


def _config_hash(config: TrainConfig) -> str:
    """SHA-256 of what was learned and how, without the paths of this machine."""
    settings = {"lora": config.lora.model_dump(mode="json"), "loop": config.loop.identity(), "steps": config.loop.steps}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _line(report: StepReport) -> str:
    waited = report.data_wait / report.seconds
    return (
        f"loss {report.loss:.4f}  {report.seconds:.2f} s/step  {report.clips_per_second:.1f} clips/s  "
        f"data wait {waited:.0%}  peak {report.peak_memory_bytes / 1e9:.1f} GB"
    )
