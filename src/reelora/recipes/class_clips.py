"""Clips of the class that the base makes itself, before it is trained away from them."""

import gc
import hashlib
import json
from pathlib import Path

import torch

from reelora.components import fingerprint_of
from reelora.data import MADE, in_use, mark_used
from reelora.errors import ConfigError
from reelora.generate import GenerateConfig, Session

from .config import DataConfig, TrainConfig
from .files import write_text
from .listener import Listener
from .machine import find_dtype, name_of_dtype
from .model import denoiser_of, facts_of, find_model, text_fingerprint_of

__all__ = ["check_class_clips", "class_data"]

_VERSION = 1
"""Raise it when the same settings come to make other clips."""


def check_class_clips(config: TrainConfig) -> None:
    """Raise ConfigError for a class that the base cannot make by itself, or that could not be stacked with the clips."""
    if not config.prior.count:
        return
    facts = facts_of(config.model)
    if sizes := config.data.sizes(facts)[1:]:
        raise ConfigError(
            f"data.buckets names {1 + len(sizes)} sizes, but clips of the class (prior.count) are made in one, and stacked "
            'with yours: set data.buckets to "one".'
        )
    if facts.needs_image:
        raise ConfigError(
            f"prior.count is {config.prior.count}, but {config.model} makes videos of pictures, not of text alone: set "
            "prior.folder to clips of the class, and prior.count to 0."
        )


def class_data(config: TrainConfig, *, device: torch.device, listener: Listener) -> list[DataConfig]:
    """The clips of the class as a data set, if there is one: those of the folder, or made now where the cache lacks them."""
    if config.prior.folder:
        return [config.class_data(Path(config.prior.folder), config.data.media)]
    if not config.prior.count:
        return []
    made = config.class_data(_made(config, device, listener), "both")
    return [made.model_copy(update={"cache": config.data.cache_folder.resolve(), "fps": "model"})]


def _made(config: TrainConfig, device: torch.device, listener: Listener) -> Path:
    """The folder of the clips that were made, named by the hash of all that decides them but their number.

    A clip appears whole or not at all, each with a seed of its own, so that it can be killed anywhere and goes on when called
    again, and a larger number makes only those that are new.
    """
    model = find_model(config.model)
    dtype = find_dtype(config.precision, device)
    session = Session(model, dtype=dtype, device=device)
    settings = _settings(config, session)
    facts = {
        "version": _VERSION,
        "base": fingerprint_of(model, denoiser_of(config.model), "vae", "scheduler"),
        "text": text_fingerprint_of(config.model),
        "dtype": name_of_dtype(dtype),
        "settings": settings.model_dump(mode="json"),
        "caption": config.prior.caption,
    }
    said = json.dumps(facts, sort_keys=True)
    folder = config.data.cache_folder / MADE / hashlib.sha256(said.encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    with in_use(config.data.cache_folder, to_read=True):
        _keep(folder / "facts.json", said + "\n")
        _complete(folder, session, settings, config, listener)
    return folder


def _complete(folder: Path, session: Session, settings: GenerateConfig, config: TrainConfig, listener: Listener) -> None:
    """Make the clips that a folder lacks, and list as many as the settings ask for."""
    suffix = ".png" if settings.num_frames == 1 else ".mp4"
    names = [f"{index:06d}{suffix}" for index in range(config.prior.count)]
    missing = [index for index, name in enumerate(names) if not (folder / name).is_file()]
    _make(session, settings, config, {index: folder / names[index] for index in missing}, listener)
    found = f"{len(missing)} made now, {len(names) - len(missing)} found in {folder}"
    listener.say(f"{'class':<10} {len(names)} of {config.prior.caption!r}: {found}")
    rows = [json.dumps({"file_name": name, "text": config.prior.caption}) for name in names]
    _keep(folder / "metadata.jsonl", "\n".join(rows) + "\n")


def _keep(path: Path, text: str) -> None:
    """Write a text; one that is there already is only marked as used now."""
    if path.is_file() and path.read_bytes() == text.encode():
        mark_used(path)
    else:
        write_text(path, text)


def _settings(config: TrainConfig, session: Session) -> GenerateConfig:
    """Those of every clip; clips of the class are as large as the others."""
    num_frames, height, width = config.data.sizes(session.facts)[0]
    steps = {} if config.prior.steps == "model" else {"steps": config.prior.steps}
    return session.config(num_frames=num_frames, height=height, width=width, seed=config.prior.seed, **steps)


def _make(session: Session, settings: GenerateConfig, config: TrainConfig, files: dict[int, Path], listener: Listener) -> None:
    """The clips of these numbers into their files; the base is in memory only if there are any."""
    if not files:
        return
    for done, (index, path) in enumerate(files.items(), 1):
        own = settings.model_copy(update={"seed": (config.prior.seed + index,)})
        [clip] = session.stream([config.prior.caption], own)
        clip.save(path, overwrite=True)
        listener.progress("class clips", done, len(files), path.name)
    session.parts.release(*session.parts.roles)
    gc.collect()
