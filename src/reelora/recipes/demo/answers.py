"""Videos that a model gives, and how many of them are right by the pixel judge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange

from reelora.adapters import Adapter
from reelora.generate import Clip, Session
from reelora.pocket import Verdict, judge
from reelora.recipes.listener import Listener

from .scenes import Question

__all__ = ["Answer", "Trial", "answer", "tiled"]

_AT_ONCE = 10
_COLUMNS = 5
_ENLARGED = 2


@dataclass(frozen=True)
class Answer:
    """The videos for one question."""

    question: Question
    clips: Sequence[Clip]

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """What is seen on each."""
        return [judge(clip.frames.numpy()) for clip in self.clips]

    def share(self, part: str) -> float:
        """Share of the videos whose shape, colour or motion is the one asked for."""
        hits = [
            getattr(seen, part) == getattr(want, part) for seen, want in zip(self.verdicts, self.question.wanted, strict=True)
        ]
        return sum(hits) / len(hits)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One question before and after training, with the same seeds."""

    before: Answer
    after: Answer

    @property
    def question(self) -> Question:
        return self.before.question

    def shares(self) -> dict[str, tuple[float, float]]:
        """Shares before and after, by what is counted."""
        return {part: (self.before.share(part), self.after.share(part)) for part in self.question.parts}


def answer(
    session: Session, question: Question, adapters: Mapping[str, tuple[Adapter, float]], *, task: str, listener: Listener
) -> Answer:
    """Make the videos of a question."""
    clips = session.generate(
        question.prompts,
        seed=question.seed,
        batch_size=_AT_ONCE,
        adapters=dict(adapters),
        on_step=lambda step, total: listener.progress(task, step, total),
    )
    return Answer(question, clips)


def tiled(clips: Sequence[Clip]) -> Clip:
    """All clips as one, in rows of five, enlarged."""
    grid = rearrange(torch.stack([clip.frames for clip in clips]), "(y x) t h w c -> t (y h) (x w) c", x=_COLUMNS)
    large = grid.repeat_interleave(_ENLARGED, dim=1).repeat_interleave(_ENLARGED, dim=2)
    return Clip(frames=large, fps=clips[0].fps, metadata={"clips": [dict(clip.metadata) for clip in clips]})
