"""Clips: folders and lists of videos, decoding to what a model takes, and a cache of latents and prompt states.

The encoders are arguments; nothing here knows a model.
"""

from .batches import BatchPlan, Visit
from .cache import CacheSummary, CacheWork, complete_cache, missing_entries
from .captions import with_repeats, with_trigger
from .dataset import CachedClip, CachedClips
from .encoding import PromptEncoder, VideoEncoder
from .entries import CacheSettings
from .fitting import FITS, PADDINGS, Fit, Padding, fitted, place
from .frames import ClipSettings, read_as, read_clip
from .images import DrawEncoder, StoredImages
from .made import MADE, MadeClips, made_clips
from .manifest import SETS
from .pieces import ChoiceKind, ClipChoice, Piece, pieces_of
from .plan import OnProgress, Plan, PlannedClip, Refusal, plan_clips, read_first_frame
from .probe import Probe, probe_video
from .probes import probe_files
from .read_only import mark_used
from .reports import Change, ClipReport
from .sampling import batch_indices
from .sources import MEDIA, CaptionLines, ClipList, ClipSource, Media, list_clips
from .upkeep import CacheSet, Damage, Pruning, alone_in, cache_sets, in_use, plan_pruning, unused_entries, verify_cache

__all__ = [
    "FITS",
    "MADE",
    "MEDIA",
    "PADDINGS",
    "SETS",
    "BatchPlan",
    "CacheSet",
    "CacheSettings",
    "CacheSummary",
    "CacheWork",
    "CachedClip",
    "CachedClips",
    "CaptionLines",
    "Change",
    "ChoiceKind",
    "ClipChoice",
    "ClipList",
    "ClipReport",
    "ClipSettings",
    "ClipSource",
    "Damage",
    "DrawEncoder",
    "Fit",
    "MadeClips",
    "Media",
    "OnProgress",
    "Padding",
    "Piece",
    "Plan",
    "PlannedClip",
    "Probe",
    "PromptEncoder",
    "Pruning",
    "Refusal",
    "StoredImages",
    "VideoEncoder",
    "Visit",
    "alone_in",
    "batch_indices",
    "cache_sets",
    "complete_cache",
    "fitted",
    "in_use",
    "list_clips",
    "made_clips",
    "mark_used",
    "missing_entries",
    "pieces_of",
    "place",
    "plan_clips",
    "plan_pruning",
    "probe_files",
    "probe_video",
    "read_as",
    "read_clip",
    "read_first_frame",
    "unused_entries",
    "verify_cache",
    "with_repeats",
    "with_trigger",
]
