"""What a data set says of all its clips: a word in their captions, and how often they are seen."""

import re
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from reelora.errors import DataError, first_few

from .sources import ClipList, ClipSource

__all__ = ["with_repeats", "with_trigger"]


def with_trigger(clips: ClipList, word: str) -> ClipList:
    """The clips with a word in front of every caption that does not hold it (as a word, in any case)."""
    held = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
    return replace(
        clips,
        clips=tuple(
            replace(clip, captions=tuple(caption if held.search(caption) else f"{word} {caption}" for caption in clip.captions))
            for clip in clips
        ),
    )


def with_repeats(clips: ClipList, repeats: Mapping[str, int]) -> ClipList:
    """The clips, those whose names match a pattern (``stars/*``) repeated so often; where several match, the last counts.

    Raises DataError for a pattern that matches no clip.
    """
    idle = [pattern for pattern in repeats if not any(fnmatchcase(clip.name, pattern) for clip in clips)]
    if idle:
        raise DataError(
            f"{clips.folder}: {len(idle)} of {len(repeats)} patterns in repeats match no clip: {first_few(idle)}. "
            f"Clips are named as {first_few([clip.name for clip in clips])}."
        )
    return replace(clips, clips=tuple(replace(clip, repeats=_repeats_of(clip, repeats)) for clip in clips))


def _repeats_of(clip: ClipSource, repeats: Mapping[str, int]) -> int:
    return [clip.repeats, *(count for pattern, count in repeats.items() if fnmatchcase(clip.name, pattern))][-1]
