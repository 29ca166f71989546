"""Encode every clip and caption once: a resumable job that calls the encoders only for what is missing."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import UInt8
from pydantic import TypeAdapter
from torch import Tensor

from reelora.errors import DataError, FileFormatError
from reelora.shapes import FramesU8, Latents, PromptStates

from .decode import file_hash
from .entries import LATENTS, PROMPTS, CacheSettings, EntryKind, find_entry, read_entry, write_entry
from .frames import ClipReport, read_as
from .manifest import MANIFEST, EntryRecord, Manifest, ManifestClip, read_manifest, unused_entries, write_manifest
from .sources import ClipSource
from .survey import OnProgress, Refusal, Survey, survey

__all__ = ["CacheSummary", "PromptEncoder", "VideoEncoder", "precompute"]

ClipBatch = UInt8[Tensor, "b t h w c"]
"""Pixels of several clips as files hold them, 0 to 255."""

VideoEncoder = Callable[[ClipBatch], Mapping[str, Latents]]
"""Posterior ``latent_mean`` and ``latent_std`` of a batch of clips."""

PromptEncoder = Callable[[list[str]], PromptStates]
"""Prompt states of a list of captions, all of the same number of tokens."""

_T = TypeVar("_T")
_PROMPTS_AT_ONCE = 8
_REPORT = TypeAdapter(ClipReport)


@dataclass(frozen=True, kw_only=True)
class CacheSummary:
    """What ``precompute`` found and made. The counts are of entries: clips or captions that are equal share one."""

    folder: Path
    num_clips: int
    encoded_videos: int
    reused_videos: int
    encoded_prompts: int
    reused_prompts: int
    reports: tuple[ClipReport, ...]
    refusals: tuple[Refusal, ...]
    unused: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class _Item:
    """A clip with the hash of its bytes and the names of its entries."""

    clip: ClipSource
    video: str
    latents: str
    prompt: str


def precompute(
    clips: Sequence[ClipSource],
    folder: Path,
    settings: CacheSettings,
    *,
    make_video_encoder: Callable[[], VideoEncoder],
    make_prompt_encoder: Callable[[], PromptEncoder],
    on_progress: OnProgress | None = None,
    skip_refused: bool = False,
    video_batch_size: int = 1,
) -> CacheSummary:
    """Complete the cache of a data set in ``folder``: latents of every clip, prompt states of every caption and of "".

    An entry is named by the SHA-256 of what it is made from (the file's bytes or the caption, the settings, the
    encoder's fingerprint, the dtype), so it is never stale and never collides; what is there and whole is not made
    again, and a factory is called only if something of its kind is missing, the prompt encoder first. Every clip that
    is new is decoded once before anything is encoded. Entries appear whole or not at all and ``manifest.json`` comes
    last: the job can be killed anywhere and goes on when called again.

    Raises DataError, before anything is encoded, with a line for each clip that cannot be used; with
    ``skip_refused`` those are left out and listed in the summary and the manifest. Raises DataError also where an
    encoder gives values that are not finite, and OSError where ``folder`` cannot be written or the disk is full.
    """
    items = [_item(clip, settings) for clip in clips]
    looked = _looked(items, folder, settings, on_progress)
    kept = _without_refused(items, looked, skip_refused)
    todo = _todo(kept, folder, settings)
    _make_folders(folder)
    _retire_manifest(folder, kept, settings)
    progress = _Progress(on_progress, done=len(looked.new), total=len(looked.new) + len(todo))
    _encode_prompts(todo.prompts, folder, settings, make_prompt_encoder, progress)
    _encode_videos(todo.videos, folder, settings, make_video_encoder, progress, looked.reports, video_batch_size)
    manifest = _manifest(kept, folder, settings, looked)
    _write_if_new(folder, manifest)
    return CacheSummary(
        folder=folder,
        num_clips=len(kept),
        encoded_videos=len(todo.videos),
        reused_videos=len(manifest.latents) - len(todo.videos),
        encoded_prompts=len(todo.prompts),
        reused_prompts=len(manifest.prompts) - len(todo.prompts),
        reports=tuple(clip.report for clip in manifest.clips),
        refusals=manifest.refused,
        unused=tuple(unused_entries(folder)),
    )


# What there is to do.


@dataclass(frozen=True, kw_only=True)
class _Looked:
    """Reports of all clips that can be used, by name; the refusals of the others; and which clips were decoded for it."""

    reports: Mapping[str, ClipReport]
    refusals: tuple[Refusal, ...]
    new: Sequence[ClipSource]


def _item(clip: ClipSource, settings: CacheSettings) -> _Item:
    video = file_hash(clip.path)
    return _Item(clip=clip, video=video, latents=settings.latents_key(video), prompt=settings.prompt_key(clip.caption))


def _looked(items: Sequence[_Item], folder: Path, settings: CacheSettings, on_progress: OnProgress | None) -> _Looked:
    """The stored report of every clip that is in the cache already; the others are decoded."""
    stored = {item.clip.name: _stored_report(item, folder) for item in items}
    known = {name: report for name, report in stored.items() if report and report.num_own_frames >= settings.clip.min_frames}
    new = [item.clip for item in items if item.clip.name not in known]
    total = len(new) + len(_todo(items, folder, settings))
    result = survey(new, settings.clip, on_progress=_Progress(on_progress, total=total).of_survey)
    return _Looked(reports={**known, **{report.name: report for report in result.reports}}, refusals=result.refusals, new=new)


def _stored_report(item: _Item, folder: Path) -> ClipReport | None:
    """What the entry of a clip says was done to it; None where the entry must be made."""
    entry = find_entry(folder, LATENTS, item.latents)
    return replace(_REPORT.validate_json(entry.metadata["report"]), name=item.clip.name) if entry else None


def _without_refused(items: Sequence[_Item], looked: _Looked, skip_refused: bool) -> list[_Item]:
    if not skip_refused or not looked.reports:
        Survey(reports=tuple(looked.reports.values()), refusals=looked.refusals).check()
    if not looked.reports:
        raise DataError("There is no clip to encode; list_clips gives those of a folder.")
    return [item for item in items if item.clip.name in looked.reports]


@dataclass(frozen=True, kw_only=True)
class _Todo:
    """One clip for each latents entry, and the caption of each prompt entry, that must still be made."""

    videos: Mapping[str, _Item]
    prompts: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.videos) + len(self.prompts)


def _todo(items: Sequence[_Item], folder: Path, settings: CacheSettings) -> _Todo:
    videos = {item.latents: item for item in items}
    prompts = {settings.prompt_key(caption): caption for caption in ["", *(item.clip.caption for item in items)]}
    return _Todo(
        videos={key: item for key, item in videos.items() if not find_entry(folder, LATENTS, key)},
        prompts={key: caption for key, caption in prompts.items() if not find_entry(folder, PROMPTS, key)},
    )


def _make_folders(folder: Path) -> None:
    for kind in (LATENTS, PROMPTS):
        (folder / kind.folder).mkdir(parents=True, exist_ok=True)


# Encoding.


class _Progress:
    """Counts pieces of work of all kinds together: clips to look at, captions and clips to encode."""

    def __init__(self, report: OnProgress | None, *, total: int, done: int = 0) -> None:
        self._report, self._done, self._total = report, done, total

    def __call__(self, name: str) -> None:
        self._done += 1
        if self._report:
            self._report(self._done, self._total, name)

    def of_survey(self, done: int, total: int, name: str) -> None:
        self(name)


@torch.no_grad()
def _encode_prompts(
    captions: Mapping[str, str],
    cache: Path,
    settings: CacheSettings,
    make_encoder: Callable[[], PromptEncoder],
    progress: _Progress,
) -> None:
    # The encoder lives only in this frame: what holds it is the caller's, who may free it before the next is made.
    encode = make_encoder() if captions else None
    for chunk in _chunks(captions.items(), _PROMPTS_AT_ONCE):
        assert encode is not None
        states = encode([caption for _, caption in chunk])
        assert states.shape[:2] == (len(chunk), settings.num_text_tokens), f"prompt states have shape {tuple(states.shape)}"
        for (key, caption), state in zip(chunk, states, strict=True):
            _store(cache, PROMPTS, key, {"prompt_states": state}, {"caption": caption}, settings, repr(caption))
            progress(caption or "the empty caption")


@torch.no_grad()
def _encode_videos(
    videos: Mapping[str, _Item],
    cache: Path,
    settings: CacheSettings,
    make_encoder: Callable[[], VideoEncoder],
    progress: _Progress,
    reports: Mapping[str, ClipReport],
    batch_size: int,
) -> None:
    encode = make_encoder() if videos else None
    for chunk in _chunks(videos.items(), batch_size):
        assert encode is not None
        moments = encode(torch.stack([_frames(item, settings) for _, item in chunk]))
        for row, (key, item) in enumerate(chunk):
            name = item.clip.name
            notes = {"source": name, "report": _REPORT.dump_json(reports[name]).decode()}
            _store(cache, LATENTS, key, {part: moments[part][row] for part in LATENTS.tensors}, notes, settings, name)
            progress(name)


def _frames(item: _Item, settings: CacheSettings) -> FramesU8:
    frames, _ = read_as(item.clip.path, settings.clip)
    if file_hash(item.clip.path) != item.video:
        raise DataError(f"{item.clip.path}: has changed since the start. Run `reelora precompute` again.")
    return frames


def _store(
    cache: Path,
    kind: EntryKind,
    key: str,
    tensors: Mapping[str, Tensor],
    notes: Mapping[str, str],
    settings: CacheSettings,
    name: str,
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
    write_entry(cache, kind, key, stored, notes)


def _chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


# The manifest.


def _retire_manifest(folder: Path, items: Sequence[_Item], settings: CacheSettings) -> None:
    """Remove a manifest of other data or settings first: a job that is killed must not leave it to be trained on."""
    try:
        old = read_manifest(folder / MANIFEST)[1]
        rows = [(clip.name, clip.caption, clip.latents, clip.prompt) for clip in old.clips]
        is_current = rows == [(i.clip.name, i.clip.caption, i.latents, i.prompt) for i in items] and old.settings == _said(
            settings
        )
    except (DataError, FileFormatError):
        is_current = False
    if not is_current:
        (folder / MANIFEST).unlink(missing_ok=True)


def _manifest(items: Sequence[_Item], folder: Path, settings: CacheSettings, looked: _Looked) -> Manifest:
    empty = settings.prompt_key("")
    return Manifest(
        settings=_said(settings),
        clips=tuple(
            ManifestClip(
                name=item.clip.name,
                caption=item.clip.caption,
                video=item.video,
                latents=item.latents,
                prompt=item.prompt,
                report=looked.reports[item.clip.name],
            )
            for item in items
        ),
        refused=looked.refusals,
        empty_prompt=empty,
        latents={item.latents: _record(folder, LATENTS, item.latents) for item in items},
        prompts={key: _record(folder, PROMPTS, key) for key in [empty, *(item.prompt for item in items)]},
    )


def _record(folder: Path, kind: EntryKind, key: str) -> EntryRecord:
    path = kind.path(folder, key)
    return EntryRecord(size_bytes=path.stat().st_size, fingerprint=read_entry(folder, kind, key).metadata["fingerprint"])


def _said(settings: CacheSettings) -> dict[str, str | int | float]:
    said = {name: value for name, value in asdict(settings).items() if name != "clip"}
    return {**asdict(settings.clip), "fps": float(settings.clip.fps), **said, "dtype": str(settings.dtype)}


def _write_if_new(folder: Path, manifest: Manifest) -> None:
    """A cache that is complete already is left alone, to the byte."""
    if not (folder / MANIFEST).exists() or read_manifest(folder)[1] != manifest:
        write_manifest(folder, manifest)
