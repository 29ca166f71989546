"""Clips: folders and lists of videos, decoding to what a model takes, and a cache of latents and prompt states.

The encoders are arguments; nothing here knows a model.
"""

from .cache import CacheSummary, PromptEncoder, VideoEncoder, precompute
from .dataset import CachedClip, CachedClips
from .entries import CacheSettings
from .frames import Change, ClipReport, ClipSettings, read_clip
from .manifest import unused_entries
from .sampling import batch_indices
from .sources import ClipList, ClipSource, list_clips
from .survey import OnProgress, Refusal, Survey, survey

__all__ = [
    "CacheSettings",
    "CacheSummary",
    "CachedClip",
    "CachedClips",
    "Change",
    "ClipList",
    "ClipReport",
    "ClipSettings",
    "ClipSource",
    "OnProgress",
    "PromptEncoder",
    "Refusal",
    "Survey",
    "VideoEncoder",
    "batch_indices",
    "list_clips",
    "precompute",
    "read_clip",
    "survey",
    "unused_entries",
]
