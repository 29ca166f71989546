"""``train``: from a folder of clips to an adapter in a file."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reelora import __version__
from reelora.adapters import write_adapter
from reelora.components import Bundle, fingerprint_of, load_components
from reelora.data import CachedClips
from reelora.lora import AttachSummary, attach, base_fingerprints, collect, target_linears
from reelora.train import Diffusion, Lesson, StepReport, TrainResult
from reelora.train import train as run_loop

from .config import TrainConfig
from .files import check_folder, write_text
from .listener import Listener
from .machine import find_device, find_dtype, name_of_dtype
from .model import find_model
from .precompute import precompute
from .previews import Previews
from .run_report import write_run_report

__all__ = ["TrainOutcome", "train"]


@dataclass(frozen=True, kw_only=True)
class TrainOutcome:
    """How a run ended and where its files are."""

    result: TrainResult
    summary: AttachSummary
    adapter: Path
    """Written when the run is complete."""
    report: Path
    held_out: tuple[str, ...]
    """Names of the clips that were held out."""


def train(config: TrainConfig, *, listener: Listener, report_name: str = "report.html") -> TrainOutcome:
    """Precompute what the cache lacks, then train, or go on with the run that ``config.output`` holds.

    Leaves ``adapter.safetensors``, ``metrics.jsonl``, ``checkpoints/``, ``report.html`` and ``config.toml`` there. While the
    transformer trains, text encoder and VAE are not in memory. What is wrong with the settings is said before any work.
    """
    _check_early(config)
    clips = precompute(config.model, config.data, device=config.device, listener=listener)
    seen, held_out = clips.split(config.data.held_out, seed=config.loop.seed)
    previews = Previews(config, listener)
    parts = _load_denoiser(config, listener)
    bases = base_fingerprints(parts.transformer)
    summary = attach(parts.transformer, config.lora.spec(), seed=config.loop.seed)
    for label, text in summary.rows():
        listener.say(f"{label:<10} {text}")
    base = fingerprint_of(find_model(config.model), "transformer")
    lesson = Lesson(
        model=parts.transformer,
        clips=seen,
        held_out=held_out,
        diffusion=Diffusion.of(parts.scheduler),
        identity={
            "base": base,
            "data": seen.data_hash,
            "lora": config.lora.model_dump(mode="json"),
            "dtype": name_of_dtype(parts.transformer.dtype),
        },
    )
    result = _run(lesson, config, previews, parts, listener)
    adapter = config.output / "adapter.safetensors"
    if result.is_complete:
        write_adapter(collect(parts.transformer, provenance=_provenance(config, bases, seen)), adapter)
    report = write_run_report(config, summary, previews.figures(), name=report_name)
    return TrainOutcome(result=result, summary=summary, adapter=adapter, report=report, held_out=tuple(held_out.sources))


def _check_early(config: TrainConfig) -> None:
    """Raise for everything that can be known to be wrong before clips are encoded."""
    find_dtype(config.precision, find_device(config.device), is_trained=True)
    check_folder(config.output)
    skeleton = load_components(find_model(config.model), roles=["transformer", "scheduler"])  # mapped: costs no memory
    target_linears(skeleton.transformer, config.lora.spec())


def _run(lesson: Lesson, config: TrainConfig, previews: Previews, parts: Bundle, listener: Listener) -> TrainResult:
    def on_start(step: int) -> None:
        write_text(config.output / "config.toml", config.toml())
        if step == 0:
            previews.after(0, parts)

    def on_step(report: StepReport) -> None:
        listener.progress("train", report.step, config.loop.steps, _line(report))
        previews.after(report.step, parts)

    with listener.stopping() as should_stop:
        return run_loop(
            lesson,
            config.loop,
            config.output,
            tensorboard=config.tensorboard,
            on_start=on_start,
            on_step=on_step,
            should_stop=should_stop,
        )


def _load_denoiser(config: TrainConfig, listener: Listener) -> Bundle:
    device = find_device(config.device)
    dtype = find_dtype(config.precision, device, is_trained=True)
    parts = load_components(find_model(config.model), roles=["transformer", "scheduler"], dtype=dtype, device=device)
    listener.say(f"{'base':<10} {config.model} on {device}, {name_of_dtype(dtype)}; text encoder and VAE are not in memory")
    return parts


def _provenance(config: TrainConfig, bases: Mapping[str, str], seen: CachedClips) -> Mapping[str, str]:
    return {
        "version": __version__,
        "base_model": Path(config.model).name,
        **bases,
        "data_hash": seen.data_hash,
        "config_hash": _config_hash(config),
        "trigger_words": ", ".join(config.trigger_words),
    }


def _config_hash(config: TrainConfig) -> str:
    """SHA-256 of what was learned and how, without the paths of this machine."""
    settings = {"lora": config.lora.model_dump(mode="json"), "loop": config.loop.identity(), "steps": config.loop.steps}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _line(report: StepReport) -> str:
    held_out = "" if report.held_out_loss is None else f"  held-out {report.held_out_loss:.4f}"
    return f"loss {report.loss:.4f}  {report.seconds:.2f} s/step{held_out}"
