"""Encode every clip and caption once: a resumable job that calls the encoders only for what is missing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from reelora.errors import DataError

from .encoding import ClipWork, PromptEncoder, PromptWork, VideoEncoder, encode_prompts, encode_videos
from .entries import LATENTS, PROMPTS, CacheSettings, EntryKind, Facts, find_entry, key_of, read_entry
from .manifest import EntryRecord, Manifest, ManifestClip, write_manifest
from .plan import OnProgress, Plan, PlannedClip, Refusal, check_refusals
from .probes import write_probe
from .read_only import if_writable
from .reports import ClipReport
from .upkeep import in_use, unused_entries

__all__ = ["CacheSummary", "CacheWork", "complete_cache", "missing_entries"]


@dataclass(frozen=True, kw_only=True)
class CacheSummary:
    """What ``complete_cache`` found and made. The counts are of entries: clips or captions that are equal share one."""

    folder: Path
    manifest: Path
    """What ``CachedClips`` opens."""
    num_clips: int
    encoded_videos: int
    reused_videos: int
    encoded_prompts: int
    reused_prompts: int
    reports: tuple[ClipReport, ...]
    refusals: tuple[Refusal, ...]
    leftovers: tuple[Refusal, ...]
    unused: tuple[Path, ...]
    """Files of the cache that none of its data sets names."""


@dataclass(frozen=True, kw_only=True)
class CacheWork:
    """What a cache lacks: one clip for each latents entry, and the caption of each prompt entry, that must still be made."""

    videos: Mapping[str, ClipWork]
    prompts: Mapping[str, PromptWork]

    def __len__(self) -> int:
        return len(self.videos) + len(self.prompts)


def complete_cache(
    plan: Plan,
    todo: CacheWork,
    folder: Path,
    settings: CacheSettings,
    *,
    make_video_encoder: Callable[[], VideoEncoder],
    make_prompt_encoder: Callable[[], PromptEncoder],
    on_progress: OnProgress | None = None,
    skip_refused: bool = False,
    video_batch_size: int = 1,
    num_workers: int = 2,
) -> CacheSummary:
    """Complete the cache of a data set in ``folder``: latents of every clip, prompt states of every caption and of "".

    An entry is named by the SHA-256 of what it is made from (the file's bytes or the caption, the settings that matter for
    it, the encoder's fingerprint, the dtype, the version of the code), so it is never stale and never collides. Only what
    is ``todo`` is made, and a factory is called only if something of its kind is, the prompt encoder first. Clips are
    decoded by ``num_workers`` threads while others are encoded. Entries appear whole or not at all and the manifest comes
    last: the job can be killed anywhere and goes on when called again, and several may work on one cache. A data set that is
    complete may lie where nothing can be written.

    Raises DataError, before anything is encoded, with a line for each clip that cannot be used; with ``skip_refused``
    those are left out and listed in the summary and the manifest. A video that turns out to be damaged while it is decoded
    is refused in the same way once all others are encoded. Raises DataError also where an encoder gives values that are not
    finite, and OSError where something is missing and ``folder`` cannot be written or the disk is full.
    """
    _check_usable(plan, skip_refused)
    if todo:
        for kind in (LATENTS, PROMPTS):
            (folder / kind.folder).mkdir(parents=True, exist_ok=True)
    with in_use(folder, to_read=not todo):
        with if_writable():
            for clip in plan.clips:
                write_probe(folder, clip.video, clip.probe)
        progress = _Progress(on_progress, total=len(todo))
        encode_prompts(todo.prompts, folder, settings, make_prompt_encoder, progress)
        outcome = encode_videos(
            todo.videos,
            folder,
            settings,
            make_video_encoder,
            progress,
            batch_size=video_batch_size,
            num_workers=num_workers,
        )
        kept = _without(plan, settings, outcome.damaged, skip_refused)
        manifest = _manifest(kept, folder, settings)
        path = write_manifest(folder, manifest)
    return CacheSummary(
        folder=folder,
        manifest=path,
        num_clips=len(kept.clips),
        encoded_videos=outcome.num_encoded,
        reused_videos=len(manifest.latents) - outcome.num_encoded,
        encoded_prompts=len(todo.prompts),
        reused_prompts=len(manifest.prompts) - len(set(manifest.prompts) & set(todo.prompts)),
        reports=tuple(clip.report for clip in kept.clips),
        refusals=kept.refusals,
        leftovers=kept.leftovers,
        unused=tuple(unused_entries(folder)),
    )


def missing_entries(plan: Plan, folder: Path, settings: CacheSettings, *, is_read_whole: bool) -> CacheWork:
    """What must be encoded for a plan; entries that are there count by their headers, or by their values if read whole."""
    videos = {key_of(facts): ClipWork(clip=clip, facts=facts) for clip, facts in _latents(plan.clips, settings)}
    captions = ["", *(caption for clip in plan.clips for caption in clip.source.captions)]
    facts = {caption: settings.prompt_facts(caption) for caption in captions}
    prompts = {key_of(facts[caption]): PromptWork(caption=caption, facts=facts[caption]) for caption in facts}

    def is_missing(kind: EntryKind, key: str) -> bool:
        return find_entry(folder, kind, key, is_read_whole=is_read_whole) is None

    return CacheWork(
        videos={key: work for key, work in videos.items() if is_missing(LATENTS, key)},
        prompts={key: work for key, work in prompts.items() if is_missing(PROMPTS, key)},
    )


def _latents(clips: Sequence[PlannedClip], settings: CacheSettings) -> list[tuple[PlannedClip, Facts]]:
    return [(clip, settings.latents_facts(clip.video, clip.piece, clip.probe)) for clip in clips]


class _Progress:
    """Counts pieces of work of both kinds together: captions and clips to encode."""

    def __init__(self, report: OnProgress | None, *, total: int) -> None:
        self._report, self._done, self._total = report, 0, total

    def __call__(self, name: str) -> None:
        self._done += 1
        if self._report:
            self._report(self._done, self._total, name)


# What cannot be used.


def _check_usable(plan: Plan, skip_refused: bool) -> None:
    if not skip_refused or not plan.clips:
        plan.check()
    if not plan.clips:
        raise DataError("There is no clip to encode; list_clips gives those of a folder.")


def _without(plan: Plan, settings: CacheSettings, damaged: Mapping[str, str], skip_refused: bool) -> Plan:
    """The plan without the clips (by their entries) that could not be decoded."""
    kept = tuple(clip for clip, facts in _latents(plan.clips, settings) if key_of(facts) not in damaged)
    found = [
        Refusal(name=clip.name, reason=damaged[key_of(facts)])
        for clip, facts in _latents(plan.clips, settings)
        if key_of(facts) in damaged
    ]
    if not skip_refused or not kept:
        check_refusals(found, len(plan.clips))
    return Plan(clips=kept, refusals=(*plan.refusals, *found), leftovers=plan.leftovers)


# The manifest.


def _manifest(plan: Plan, folder: Path, settings: CacheSettings) -> Manifest:
    def prompt_key(caption: str) -> str:
        return key_of(settings.prompt_facts(caption))

    clips = tuple(
        ManifestClip(
            name=clip.name,
            captions=clip.source.captions,
            repeats=clip.source.repeats,
            video=clip.video,
            latents=key_of(facts),
            prompts=tuple(prompt_key(caption) for caption in clip.source.captions),
            report=clip.report,
        )
        for clip, facts in _latents(plan.clips, settings)
    )
    empty = prompt_key("")
    return Manifest(
        settings=_said(settings),
        clips=clips,
        refused=(*plan.refusals, *plan.leftovers),
        empty_prompt=empty,
        latents={clip.latents: _record(folder, LATENTS, clip.latents) for clip in clips},
        prompts={key: _record(folder, PROMPTS, key) for key in [empty, *(key for clip in clips for key in clip.prompts)]},
    )


def _record(folder: Path, kind: EntryKind, key: str) -> EntryRecord:
    path = kind.path(folder, key)
    return EntryRecord(size_bytes=path.stat().st_size, fingerprint=read_entry(folder, kind, key).metadata["fingerprint"])


def _said(settings: CacheSettings) -> dict[str, str | int | float]:
    return {
        **asdict(settings.clip),
        "fps": float(settings.clip.fps),
        "buckets": " ".join(map(str, settings.buckets)),
        "choice": settings.choice.kind,
        "vae_fingerprint": settings.vae_fingerprint,
        "text_fingerprint": settings.text_fingerprint,
        "num_text_tokens": settings.num_text_tokens,
        "dtype": str(settings.dtype),
    }
