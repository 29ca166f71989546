"""A contact sheet of a data set: exactly what the model will see, with what it will be told."""

from collections.abc import Iterable, Sequence
from math import ceil
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate

from reelora.data import MEDIA, PlannedClip, read_as
from reelora.errors import ConfigError, DataError, FileFormatError
from reelora.tensorio import atomic_path

from .config import DataConfig
from .files import check_new, check_parent, check_picture
from .listener import Listener
from .precompute import DataPlan
from .texts import plain

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["check_sheet", "write_sheet"]

_FRAMES_SHOWN = 6
_LONGEST_SIDE = 192
"""Larger frames are reduced to this many pixels."""
_CLIPS_PER_PAGE = 40
_GAP, _LINE_HEIGHT, _LETTER_WIDTH = 6, 14, 6.2
_PAPER, _INK, _RED = (255, 255, 255), (30, 30, 30), (190, 20, 20)


def check_sheet(path: Path, data: DataConfig) -> None:
    """Raise ConfigError for a file that is no picture, is there already, or would be a clip at the next run, and OSError where
    none can be made."""
    check_picture(path)
    check_new(path)
    check_parent(path)
    if path.suffix.lower() in MEDIA[data.media] and path.resolve().is_relative_to(data.folder.resolve()):
        raise ConfigError(
            f"{path} lies among the clips, and data.media = {data.media} makes a clip of every picture there: name a file "
            f"outside of {data.folder}."
        )


def write_sheet(plan: DataPlan, path: Path, *, listener: Listener) -> list[Path]:
    """Decode every clip of a plan and draw a row for each: name, bucket, captions, and frames from its first to its last.

    Frames are what the VAE would be given, after resampling, cropping and padding, reduced where they are large. More than
    forty clips take further files: ``sheet-2.png`` ... A video that turns out to be damaged has its reason in its row, and so
    have those that are refused. Raises as ``check_sheet`` does, for every file, before anything is decoded.
    """
    num_rows = len(plan.plan.clips) + len(plan.plan.refusals)
    files = [_page_path(path, number) for number in range(1, 1 + ceil(num_rows / _CLIPS_PER_PAGE))]
    for file in files:
        check_sheet(file, plan.data)
    rows = []
    for done, clip in enumerate(plan.plan.clips, 1):
        rows.append(_row(clip))
        listener.progress("sheet", done, len(plan.plan.clips), clip.name)
    rows += [_text_row([f"refused {refusal.name}: {refusal.reason}"]) for refusal in plan.plan.refusals]
    pages = [rows[start : start + _CLIPS_PER_PAGE] for start in range(0, len(rows), _CLIPS_PER_PAGE)]
    return [_write_page(page, file) for page, file in zip(pages, files, strict=True)]


def _page_path(path: Path, number: int) -> Path:
    return path if number == 1 else path.with_stem(f"{path.stem}-{number}")


def _write_page(rows: Sequence["Image"], path: Path) -> Path:
    with atomic_path(path) as temporary:
        _stacked(rows).save(temporary)
    return path


def _row(clip: PlannedClip) -> "Image":
    title = f"{clip.name}   {clip.bucket} at {clip.piece.settings.fps:g} fps"
    try:
        frames, _ = read_as(clip.source.path, clip.piece.settings, first=clip.piece.first)
    except (DataError, FileFormatError, OSError) as error:
        return _text_row([f"{title}: {error}"])
    strip = _strip(frames)
    return _stacked([_text([title, *(f'"{caption}"' for caption in clip.source.captions)], strip.width, _INK), strip])


def _text_row(lines: Sequence[str]) -> "Image":
    return _text(lines, _FRAMES_SHOWN * _LONGEST_SIDE, _RED)


def _strip(frames: Tensor) -> "Image":
    """Evenly spaced frames beside each other, the first and the last among them."""
    from PIL import Image

    last = len(frames) - 1
    chosen = list(dict.fromkeys(round(last * index / (_FRAMES_SHOWN - 1)) for index in range(_FRAMES_SHOWN)))
    shown = [Image.fromarray(picture.numpy()) for picture in _reduced(frames[chosen])]
    width, height = shown[0].size
    strip = Image.new("RGB", (len(shown) * (width + _GAP) - _GAP, height), _PAPER)
    for index, picture in enumerate(shown):
        strip.paste(picture, (index * (width + _GAP), 0))
    return strip


def _reduced(frames: Tensor) -> Tensor:
    scale = _LONGEST_SIDE / max(frames.shape[1:3])
    if scale >= 1:
        return frames
    size = [max(1, round(side * scale)) for side in frames.shape[1:3]]
    planes = rearrange(frames, "t h w c -> t c h w")
    return rearrange(interpolate(planes, size=size, mode="bicubic", antialias=True), "t c h w -> t h w c").to(torch.uint8)


def _text(lines: Iterable[str], width: int, ink: tuple[int, int, int]) -> "Image":
    from PIL import Image, ImageDraw, ImageFont

    room = max(24, int(width / _LETTER_WIDTH))
    wrapped = [part for line in lines for part in wrap(plain(line, width=2000), room)]
    sheet = Image.new("RGB", (max(width, round(room * _LETTER_WIDTH)), _LINE_HEIGHT * len(wrapped) + 2), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for index, line in enumerate(wrapped):
        draw.text((0, index * _LINE_HEIGHT), line, fill=ink, font=font)
    return sheet


def _stacked(rows: Sequence["Image"]) -> "Image":
    from PIL import Image

    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height + _GAP for row in rows)), _PAPER)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + _GAP
    return sheet
