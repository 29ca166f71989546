"""Captions and clips through their encoders and into entries."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from reelora.errors import DataError, FileFormatError
from reelora.shapes import FramesU8, Latents

from .decode import file_hash
from .entries import LATENTS, PROMPTS, CacheSettings, EntryKind, Facts, find_entry, write_entry
from .frames import read_as
from .plan import PlannedClip
from .work import ahead, behind, chunks

__all__ = ["ClipWork", "PromptEncoder", "PromptWork", "VideoEncoder", "VideoOutcome", "encode_prompts", "encode_videos"]

ClipBatch = UInt8[Tensor, "b t h w c"]
"""Pixels of several clips as files hold them, 0 to 255."""

VideoEncoder = Callable[[ClipBatch], Mapping[str, Latents]]
"""Posterior ``latent_mean`` and ``latent_std`` of a batch of clips."""

PromptEncoder = Callable[[list[str]], Mapping[str, Tensor]]
"""``prompt_states`` (b s d) of a list of captions, all of the same number of tokens; of some models ``pooled`` (b d) too."""

OnEntry = Callable[[str], None]
"""Called with the name of what an entry was made from."""

_PROMPTS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class ClipWork:
    """A clip whose latents are missing, and what decides them."""

    clip: PlannedClip
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class PromptWork:
    """A caption whose states are missing, and what decides them."""

    caption: str
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class VideoOutcome:
    """How many clips were encoded, and the entries that could not be made, with reasons."""

    num_encoded: int
    damaged: Mapping[str, str]


@torch.no_grad()
def encode_prompts(
    todo: Mapping[str, PromptWork],
    cache: Path,
    settings: CacheSettings,
    make_encoder: Callable[[], PromptEncoder],
    on_entry: OnEntry,
) -> None:
    """Make the prompt entries that are missing."""
    # The encoder lives only in this frame: what holds it is the caller's, who may free it before the next is made.
    encode = make_encoder() if todo else None
    for chunk in chunks(todo.values(), _PROMPTS_AT_ONCE):
        assert encode is not None
        encoded = encode([work.caption for work in chunk])
        states = encoded["prompt_states"]
        assert states.shape[:2] == (len(chunk), settings.num_text_tokens), f"prompt states have shape {tuple(states.shape)}"
        for row, work in enumerate(chunk):
            tensors = {part: encoded[part][row] for part in PROMPTS.axes_of(encoded)}
            _store(cache, PROMPTS, work.facts, tensors, settings, repr(work.caption))
            on_entry(work.caption or "the empty caption")


@torch.no_grad()
def encode_videos(
    todo: Mapping[str, ClipWork],
    cache: Path,
    settings: CacheSettings,
    make_encoder: Callable[[], VideoEncoder],
    on_entry: OnEntry,
    *,
    batch_size: int,
    num_workers: int,
) -> VideoOutcome:
    """Make the latents entries that are missing, bucket by bucket.

    While a batch is encoded, the clips of the next ones are decoded and those before it are written.
    """
    encode = make_encoder() if todo else None
    damaged: dict[str, str] = {}
    works = sorted(todo.items(), key=lambda item: item[1].clip.bucket)
    read = ahead(partial(_read, cache), works, num_workers=num_workers, most=num_workers + batch_size)
    num_encoded = 0
    with closing(read), behind() as later:
        for batch in _batches(read, batch_size, damaged, on_entry):
            assert encode is not None
            moments = encode(torch.stack([frames for _, frames in batch]))
            num_encoded += len(batch)
            for row, (work, _) in enumerate(batch):
                tensors = {part: moments[part][row] for part in LATENTS.tensors}
                later(partial(_store, cache, LATENTS, work.facts, tensors, settings, work.clip.name))
                on_entry(work.clip.name)
    return VideoOutcome(num_encoded=num_encoded, damaged=damaged)


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A clip's frames; or why there are none: it is damaged, or another process made its entry meanwhile ('')."""

    key: str
    work: ClipWork
    frames: FramesU8 | None = None
    fault: str = ""


def _read(cache: Path, item: tuple[str, ClipWork]) -> _Read:
    key, work = item
    if find_entry(cache, LATENTS, key, is_read_whole=True):
        return _Read(key=key, work=work)
    clip = work.clip
    try:
        frames, _ = read_as(clip.source.path, clip.piece.settings, first=clip.piece.first)
        if file_hash(clip.source.path) != clip.video:
            raise DataError(f"{clip.source.path}: has changed since the start. Run `reelora precompute` again.")
    except (DataError, FileFormatError, OSError) as error:
        return _Read(key=key, work=work, fault=str(error))
    return _Read(key=key, work=work, frames=frames)


def _batches(
    read: Iterator[_Read], size: int, damaged: dict[str, str], on_entry: OnEntry
) -> Iterator[list[tuple[ClipWork, FramesU8]]]:
    """Clips of one bucket each; those without frames are taken out and noted."""

    def with_frames() -> Iterator[tuple[ClipWork, FramesU8]]:
        for one in read:
            if one.fault:
                damaged[one.key] = one.fault
            if one.frames is None:
                on_entry(one.work.clip.name)
            else:
                yield one.work, one.frames

    for _, clips in groupby(with_frames(), key=lambda pair: pair[0].clip.bucket):
        yield from chunks(clips, size)


def _store(
    cache: Path, kind: EntryKind, facts: Facts, tensors: Mapping[str, Tensor], settings: CacheSettings, name: str
) -> None:
    """Write one entry in the stored dtype, unless it holds values that would poison the training."""
    stored = {part: tensor.to("cpu", settings.dtype) for part, tensor in tensors.items()}
    for part, tensor in stored.items():
        num_bad = int((~tensor.isfinite()).sum())
        if num_bad:
            raise DataError(
                f"{name}: {num_bad} of {tensor.numel()} values of its {part} are not finite as {settings.dtype}. "
                "Run the encoder and store its results in float32 or bfloat16."
            )
    write_entry(cache, kind, facts, stored)
