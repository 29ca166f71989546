"""Which layout a file is of: the one whose grammar explains every tensor name."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from reelora.errors import first_few
from reelora.tensorio import shown

from .layout import Grammar, Layout
from .paths import UNET_TOPS
from .place import DENOISER, Place, Slot
from .suffixed import REFUSED
from .tables import LAYOUTS

__all__ = ["Reading", "detect"]

MAX_LETTERS = 256
"""Of a tensor name; no dialect has one of 200."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The tensor names of one file, explained."""

    layout: Layout | None
    """None where no layout has any of the names."""
    modules: Mapping[str, Mapping[Slot, str]]
    """Our module name, slot, and the tensor that has it."""
    tokens: tuple[str, ...] = ()
    """Names of textual-inversion embeddings."""
    num_base: int = 0
    """How many tensors belong to the base model in the same file."""
    problems: tuple[str, ...] = field(default=())
    """Everything that keeps these names from being one adapter."""


def detect(keys: Iterable[str], metadata: Mapping[str, str]) -> Reading:
    """Explain every tensor name of a file by the first layout that can.

    Where none can explain all, the one that explains most tells the problems; of those that explain equally many, the one whose
    prefixes and endings the names have.
    """
    keys = list(keys)
    for layout in LAYOUTS:
        if (places := _whole(layout, keys, metadata)) is not None:
            return _reading(layout, places)
    tries = [(layout, _parts(layout, keys, metadata)) for layout in LAYOUTS]
    layout, places = max(tries, key=lambda one: (len(one[1]), sum(one[0].grammar.likeness(key) for key in keys)))
    is_like = places or any(layout.grammar.likeness(key) for key in keys)
    return _reading(layout if is_like else None, {key: places.get(key) for key in keys})


def _whole(layout: Layout, keys: Sequence[str], metadata: Mapping[str, str]) -> dict[str, Place] | None:
    """Every name explained; None at the first that is not."""
    grammar = layout.grammar.of_file(keys, metadata)
    places: dict[str, Place] = {}
    for key in keys:
        if (place := _parse(grammar, key)) is None:
            return None
        places[key] = place
    return places if places and _has_needed(layout, places) else None


def _parts(layout: Layout, keys: Sequence[str], metadata: Mapping[str, str]) -> dict[str, Place]:
    """The names that a layout explains."""
    grammar = layout.grammar.of_file(keys, metadata)
    places = {key: place for key in keys if (place := _parse(grammar, key)) is not None}
    return places if _has_needed(layout, places) else {}


def _parse(grammar: Grammar, key: str) -> Place | None:
    return grammar.parse(key) if len(key) <= MAX_LETTERS else None


def _has_needed(layout: Layout, places: Mapping[str, Place]) -> bool:
    return not layout.needs or not layout.needs.isdisjoint(place.slot for place in places.values())


def _reading(layout: Layout | None, places: Mapping[str, Place | None]) -> Reading:
    denoiser = _denoiser(place for place in places.values() if place)
    found = {key: _settled(place, denoiser) for key, place in places.items() if place}
    parts = {key: place for key, place in found.items() if place.slot not in ("token", "base", "refused")}
    modules: dict[str, dict[Slot, str]] = {}
    for key, place in parts.items():
        modules.setdefault(place.module, {})[place.slot] = key
    return Reading(
        layout=layout,
        modules=modules,
        tokens=tuple(key for key, place in found.items() if place.slot == "token"),
        num_base=sum(place.slot == "base" for place in found.values()),
        problems=tuple(_problems(layout, places, found, parts)),
    )


def _denoiser(places: Iterable[Place]) -> str:
    """``unet`` where any path is one that only a UNet has, else ``transformer``."""
    paths = (place.module.partition(".")[2] for place in places)
    return "unet" if any(path.partition(".")[0] in UNET_TOPS for path in paths) else "transformer"


def _settled(place: Place, denoiser: str) -> Place:
    role, _, path = place.module.partition(".")
    return Place(f"{denoiser}.{path}", place.slot, place.name) if role == DENOISER else place


def _problems(
    layout: Layout | None, places: Mapping[str, Place | None], found: Mapping[str, Place], parts: Mapping[str, Place]
) -> Iterable[str]:
    if strangers := [shown(key) for key, place in places.items() if place is None]:
        whose = "this layout has not" if layout else "no known layout has"
        yield f"{len(strangers)} tensors have names that {whose}: {first_few(strangers)}"
    if refused := [key for key, place in found.items() if place.slot == "refused"]:
        reasons = sorted({REFUSED[ending] for key in refused for ending in REFUSED if key.endswith(f".{ending}")})
        yield f"{len(refused)} tensors are no LoRA but {', '.join(reasons)}: {first_few(refused)}"
    twice = [place for place, count in Counter((p.module, p.slot, p.name) for p in parts.values()).items() if count > 1]
    if twice:
        yield f"{len(twice)} parts are there twice under two spellings: {first_few([f'{m} {slot}' for m, slot, _ in twice])}"
    if len(names := sorted({place.name for place in parts.values()})) > 1:
        yield f"it mixes {len(names)} adapter slots ({first_few(names)}): save each adapter into a file of its own"
