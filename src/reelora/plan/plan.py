"""How a job is run: where the parts of a model are, and what is done to make them smaller or faster."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from reelora.errors import ConfigError, nearest

__all__ = ["AUTO", "Placement", "Plan", "parse_plan"]

Placement = Literal["resident", "model", "group", "sequential"]
"""resident: all parts on the device. model: one part on the device at a time; on a CPU the text encoder is let go before
denoising, and the VAE is loaded after it. group: a few blocks at a time. sequential: one layer at a time."""

AUTO = "auto"
_ATTENTION = "attention"
_WORDS: Mapping[str, str] = {
    "use_streams": "streams",
    "tiles": "tiles",
    "slices": "slices",
    "fp8": "fp8",
    "compile": "compile",
}
"""How the switches of a plan are spelled, by field."""
_SAID: Mapping[str, str] = {
    "use_streams": "copied ahead",
    "tiles": "VAE in tiles",
    "slices": "VAE one video at a time",
    "fp8": "denoiser stored in fp8",
    "compile": "compiled blocks",
}
_PLACES: Mapping[Placement, str] = {
    "resident": "everything resident",
    "model": "one part at a time",
    "group": "a few blocks at a time",
    "sequential": "one layer at a time",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a job is run. Only tiles, fp8, compile and another attention backend change the numbers, all but fp8 very little.

    Raises ConfigError for streams without groups, which nothing would use.
    """

    placement: Placement = "resident"
    use_streams: bool = False
    """With groups: copy the next one while this one computes."""
    tiles: bool = False
    """The VAE takes a frame in overlapping tiles."""
    slices: bool = False
    """The VAE takes the videos of a batch one by one."""
    fp8: bool = False
    """The denoiser's large layers are stored in 8 bits, and computed in the precision of the rest."""
    compile: bool = False
    """The repeated blocks of the denoiser are compiled."""
    attention: str = AUTO
    """``auto``, or the name of a diffusers attention backend."""

    def __post_init__(self) -> None:
        if self.placement not in get_args(Placement):
            raise ConfigError(f"placement is {self.placement!r}: {nearest(str(self.placement), get_args(Placement))}")
        if self.use_streams and self.placement != "group":
            raise ConfigError(f"streams go with the placement group, not with {self.placement}: write group,streams.")

    @property
    def spelled(self) -> str:
        """What `parse_plan` makes this plan of: ``group,streams,tiles``."""
        switches = [word for name, word in _WORDS.items() if getattr(self, name)]
        attention = [] if self.attention == AUTO else [f"{_ATTENTION}={self.attention}"]
        return ",".join([self.placement, *switches, *attention])

    def as_json(self) -> dict[str, Any]:
        """Plain values, by field."""
        return asdict(self)

    def __str__(self) -> str:
        switches = [text for name, text in _SAID.items() if getattr(self, name)]
        attention = [] if self.attention == AUTO else [f"attention by {self.attention}"]
        return ", ".join([_PLACES[self.placement], *switches, *attention])


def parse_plan(text: str) -> "Plan | Literal['auto']":
    """The plan that words separated by commas mean: ``auto``; ``resident``, ``model``, ``group`` or ``sequential``, first or
    left out (resident); and any of ``streams``, ``tiles``, ``slices``, ``fp8``, ``compile``, ``attention=NAME``.

    Raises ConfigError that names every unknown word with the nearest one, and for words that exclude each other.
    """
    words = [word for word in re.split(r"[,\s]+", text.strip()) if word]
    if words == [AUTO]:
        return AUTO
    switches = {word: name for name, word in _WORDS.items()}
    known = (*get_args(Placement), *switches)
    places = [word for word in words if word in get_args(Placement)]
    attention = [word.partition("=")[2] for word in words if word.startswith(f"{_ATTENTION}=")]
    unknown = [word for word in words if word not in known and not word.startswith(f"{_ATTENTION}=")]
    problems = [f"{word!r} is none of its words, {nearest(word, (*known, AUTO))}" for word in unknown if word != AUTO]
    problems += ["auto stands alone"] if AUTO in words else []
    problems += ["it is empty: write auto"] if not words else []
    problems += [f"{' and '.join(places)} exclude each other"] if len(set(places)) > 1 else []
    problems += ["attention needs one name of a backend"] if attention and (len(attention) > 1 or not attention[0]) else []
    if problems:
        raise ConfigError(f"The plan {text!r} cannot be: {'; '.join(problems)}.")
    chosen: dict[str, Any] = {switches[word]: True for word in words if word in switches}
    chosen |= {"placement": places[0]} if places else {}
    chosen |= {"attention": attention[0]} if attention else {}
    return Plan(**chosen)


assert {field.name for field in fields(Plan)} == {"placement", "attention", *_WORDS}, "every field has a spelling"
