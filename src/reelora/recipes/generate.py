"""``generate``: prompts to video files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reelora.adapters import Adapter
from reelora.generate import Session, check_destination

from .listener import Listener
from .machine import Precision, find_device, find_dtype
from .model import find_model

__all__ = ["generate"]


def generate(
    model: str | None,
    prompts: Sequence[str],
    output: Path,
    *,
    adapters: Mapping[str, tuple[Adapter, float]],
    device: str,
    precision: Precision,
    overwrite: bool,
    listener: Listener,
    settings: Mapping[str, Any],
    sat_config: Sequence[Path] | None = None,
    paths: Mapping[str, Path] | None = None,
) -> list[Path]:
    """Make one video per prompt and write each as soon as it is done; several are numbered: ``cat-0.mp4``, ``cat-1.mp4``.

    Everything is checked before the model is loaded: settings, adapters, and whether the files may be written.
    """
    place = find_device(device)
    dtype = find_dtype(precision, place)
    session = Session(find_model(model) if model else None, dtype=dtype, device=place, sat_config=sat_config, paths=paths)
    config = session.config(**settings)
    outputs = [output] if len(prompts) == 1 else [output.with_stem(f"{output.stem}-{index}") for index in range(len(prompts))]
    for path in outputs:
        check_destination(path, overwrite=overwrite)
    clips = session.stream(
        prompts,
        config,
        adapters=dict(adapters),
        on_step=lambda step, total: listener.progress("generate", step, total),
    )
    files = []
    for path, clip in zip(outputs, clips, strict=True):
        for note in clip.notes:
            listener.say(note)
        files += clip.save(path, overwrite=overwrite)
    return files
