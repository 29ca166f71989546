"""``precompute``: every clip and caption of a data set into its cache."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import torch

from reelora.components import (
    Bundle,
    LongPrompt,
    encode_captions,
    encode_video,
    fingerprint_of,
    load_components,
    long_prompts,
    to_video,
)
from reelora.data import (
    CachedClips,
    CacheSettings,
    CacheSummary,
    CacheWork,
    ClipList,
    ClipSettings,
    Plan,
    PlannedClip,
    PromptEncoder,
    VideoEncoder,
    complete_cache,
    missing_entries,
    plan_clips,
)

from .config import DataConfig
from .listener import Listener
from .machine import find_device
from .model import facts_of, find_model, text_fingerprint_of, text_roles_of

__all__ = ["DataPlan", "plan_data", "precompute", "precompute_plan"]

_MOST_CLIPS_AT_ONCE = 8
_BYTES_PER_PIXEL = 3 * 1024
"""Of what the published VAE keeps while it encodes, in bfloat16: about half of what decoding takes (components.tiling)."""
_FRAMES_AT_ONCE, _MOST_PIXELS = 8, 1_000_000


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """What becomes of every clip of a data set, and what must still be encoded for it."""

    data: DataConfig
    settings: CacheSettings
    clips: ClipList
    plan: Plan
    todo: CacheWork
    long_captions: tuple[LongPrompt, ...]

    @property
    def missing(self) -> set[str]:
        """Names of the clips that are not in the cache."""
        return {work.clip.name for work in self.todo.videos.values()}

    def lines(self) -> list[str]:
        """A line for each clip, for all that is not used, and for the whole."""
        return [
            *(self._line(clip) for clip in self.plan.clips),
            *_unused_lines(self),
            *(f"refused {refusal.name}: {refusal.reason}" for refusal in self.plan.refusals),
            *(f"caption too long: {prompt}" for prompt in self.long_captions),
            self._total(),
        ]

    def _total(self) -> str:
        refused = f"{len(self.plan.refusals)} of {self.plan.num_videos} videos refused"
        missing = f"{len(self.todo.videos)} clips, {len(self.todo.prompts)} captions"
        return f"{_clips_text(self.plan)}; {refused}; to encode: {missing}"

    def as_json(self) -> dict[str, object]:
        """The same for a program."""
        return {
            "clips": [self._row(clip) for clip in self.plan.clips],
            "buckets": self.plan.bucket_sizes,
            "refused": [asdict(refusal) for refusal in self.plan.refusals],
            "leftovers": [asdict(leftover) for leftover in self.plan.leftovers],
            "unused_files": list(self.clips.unused),
            "long_captions": [asdict(prompt) for prompt in self.long_captions],
            "to_encode": {"clips": len(self.todo.videos), "captions": len(self.todo.prompts)},
            "cache": str(self.data.cache_folder),
        }

    def _line(self, clip: PlannedClip) -> str:
        captions, repeats = len(clip.source.captions), clip.source.repeats
        done = "; ".join(f"{change.kind} {change.reason}" for change in clip.report.changes) or "as it is"
        notes = [
            f"{captions} captions" if captions > 1 else "",
            f"seen {repeats} times an epoch" if repeats > 1 else "",
            "to encode" if clip.name in self.missing else "in the cache",
        ]
        return f"{clip.name} -> {clip.bucket}: {done} ({', '.join(filter(None, notes))})"

    def _row(self, clip: PlannedClip) -> dict[str, object]:
        return {
            "name": clip.name,
            "bucket": clip.bucket,
            "first": clip.piece.first,
            "changes": [asdict(change) for change in clip.report.changes],
            "captions": list(clip.source.captions),
            "repeats": clip.source.repeats,
            "is_cached": clip.name not in self.missing,
        }


def plan_data(model: str, data: DataConfig, *, listener: Listener, is_read_whole: bool = False) -> DataPlan:
    """Find out what every clip becomes; nothing is written and no encoder is loaded.

    Raises DataError for what is wrong with the folder and its captions, ConfigError for sizes that the model cannot do and
    for a model of another family. Videos that cannot be used are in the plan.
    """
    facts = facts_of(model)
    facts.check_trainable()
    settings = CacheSettings(
        clip=data.clip_settings(facts),
        sizes=data.sizes(facts),
        choice=data.clip_choice(),
        vae_fingerprint=fingerprint_of(find_model(model), "vae"),
        text_fingerprint=text_fingerprint_of(model),
        num_text_tokens=facts.num_text_tokens,
    )
    clips = data.read_list()
    plan = plan_clips(
        clips,
        settings,
        data.cache_folder,
        on_progress=lambda done, total, name: listener.progress("look", done, total, name),
    )
    captions = list(dict.fromkeys(caption for clip in clips for caption in clip.captions))
    return DataPlan(
        data=data,
        settings=settings,
        clips=clips,
        plan=plan,
        todo=missing_entries(plan, data.cache_folder, settings, is_read_whole=is_read_whole),
        long_captions=long_prompts(load_components(find_model(model), roles=text_roles_of(model)[:1]), captions),
    )


def precompute(model: str, data: DataConfig, *, device: str, listener: Listener, is_read_whole: bool = False) -> CachedClips:
    """Encode what the cache lacks; text encoder and VAE are loaded one after the other, each only if it has work.

    Entries that are there are compared with their hashes now if they are to be ``is_read_whole``, otherwise when they are
    first read. Raises as ``plan_data`` does, DataError that lists every clip that cannot be used.
    """
    find_device(device)
    plan = plan_data(model, data, listener=listener, is_read_whole=is_read_whole)
    summary = precompute_plan(plan, model, device=device, listener=listener)
    return CachedClips(summary.manifest)


def precompute_plan(plan: DataPlan, model: str, *, device: str, listener: Listener) -> CacheSummary:
    """Carry out a plan, saying what is done to every clip that is new and what is not used."""
    place = find_device(device)
    for line in [*_unused_lines(plan), *_change_lines(plan)]:
        listener.say(line)
    with ExitStack() as loaded:
        summary = complete_cache(
            plan.plan,
            plan.todo,
            plan.data.cache_folder,
            plan.settings,
            make_video_encoder=lambda: _video_encoder(_loaded(loaded, model, ["vae"], place), place),
            make_prompt_encoder=lambda: _prompt_encoder(_loaded(loaded, model, text_roles_of(model), place)),
            on_progress=lambda done, total, name: listener.progress("precompute", done, total, name),
            skip_refused=plan.data.skip_refused,
            video_batch_size=_batch_size(plan.data, plan.settings.clip, place),
            num_workers=_num_workers(plan.data),
        )
    refused = [f"refused {refusal.name}: {refusal.reason}" for refusal in summary.refusals]
    long = [f"caption too long: {prompt}" for prompt in plan.long_captions]
    found = f"{summary.encoded_videos} encoded now, {summary.reused_videos} found in {summary.folder}"
    for line in [*long, *refused, f"{_clips_text(plan.plan)}: {found}"]:
        listener.say(line)
    return summary


def _loaded(stack: ExitStack, model: str, roles: Sequence[str], device: torch.device) -> Bundle:
    """Parts that are let go of when the next ones are loaded, and at the end of ``stack``."""
    stack.close()
    parts = load_components(find_model(model), roles=roles, device=device)
    stack.callback(parts.release, *roles)
    return parts


def _video_encoder(parts: Bundle, device: torch.device) -> VideoEncoder:
    if parts.vae.dtype == torch.float16 and getattr(parts.vae.config, "force_upcast", False):
        parts.vae.float()  # it overflows in float16, as its config says: SDXL's does

    def encode(frames: torch.Tensor) -> dict[str, torch.Tensor]:
        posterior = encode_video(parts, to_video(frames.to(device)))  # as bytes: a quarter of what floats take to move
        return {"latent_mean": posterior.mean.cpu(), "latent_std": posterior.std.cpu()}

    return encode


def _prompt_encoder(parts: Bundle) -> PromptEncoder:
    def encode(captions: list[str]) -> dict[str, torch.Tensor]:
        encoded = encode_captions(parts, captions)
        pooled = {} if encoded.pooled is None else {"pooled": encoded.pooled.cpu()}
        return {"prompt_states": encoded.states.cpu()} | pooled

    return encode


def _batch_size(data: DataConfig, clip: ClipSettings, device: torch.device) -> int:
    if data.encode_batch_size != "auto":
        return data.encode_batch_size
    if device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    pixels = min(_MOST_PIXELS, min(clip.num_frames, _FRAMES_AT_ONCE) * clip.height * clip.width)
    return max(1, min(_MOST_CLIPS_AT_ONCE, free // 2 // (pixels * _BYTES_PER_PIXEL)))


def _num_workers(data: DataConfig) -> int:
    return min(8, max(1, (os.cpu_count() or 2) // 2)) if data.decode_workers == "auto" else data.decode_workers


# Texts.


def _unused_lines(plan: DataPlan) -> list[str]:
    return [
        *(f"not used: {name}" for name in plan.clips.unused),
        *(f"not used of {leftover.name}: {leftover.reason}" for leftover in plan.plan.leftovers),
    ]


def _change_lines(plan: DataPlan) -> list[str]:
    """Every change of every clip where any must be encoded; else only how many clips were changed how."""
    changes = [(clip.name, change) for clip in plan.plan.clips for change in clip.report.changes]
    if plan.todo.videos:
        return [f"{name}: {change.reason}" for name, change in changes]
    return [f"{count} clips {kind}" for kind, count in Counter(change.kind for _, change in changes).items()]


def _clips_text(plan: Plan) -> str:
    sizes: Mapping[str, int] = plan.bucket_sizes
    if len(sizes) < 2:
        return f"{len(plan.clips)} clips of {next(iter(sizes), 'no size')}"
    parts = ", ".join(f"{count} of {name}" for name, count in sizes.items())
    return f"{len(plan.clips)} clips in {len(sizes)} buckets ({parts})"
