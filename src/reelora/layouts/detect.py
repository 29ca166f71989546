"""Which layout a file is of: the one whose grammar explains every tensor name."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from reelora.errors import first_few

from .layout import Layout
from .paths import UNET_TOPS
from .place import DENOISER, Place, Slot
from .suffixed import REFUSED
from .tables import LAYOUTS

__all__ = ["Reading", "detect"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The tensor names of one file, explained."""

    layout: Layout
    modules: Mapping[str, Mapping[Slot, str]]
    """Our module name, slot, and the tensor that has it."""
    tokens: tuple[str, ...] = ()
    """Names of textual-inversion embeddings."""
    num_base: int = 0
    """How many tensors belong to the base model in the same file."""
    problems: tuple[str, ...] = field(default=())
    """Everything that keeps these names from being one adapter."""


def detect(keys: Iterable[str], metadata: Mapping[str, str]) -> Reading:
    """Explain every tensor name of a file by the one layout that can, or by the one that explains most, with all problems."""
    keys = list(keys)
    tries = [(layout, _parse(layout, keys, metadata)) for layout in LAYOUTS]
    layout, places = max(tries, key=lambda one: sum(place is not None for place in one[1].values()))
    return _reading(layout, places)


def _parse(layout: Layout, keys: list[str], metadata: Mapping[str, str]) -> dict[str, Place | None]:
    grammar = layout.grammar.of_file(keys, metadata)
    places = {key: grammar.parse(key) for key in keys}
    held = {place.slot for place in places.values() if place}
    return places if not layout.needs or held & layout.needs else dict.fromkeys(keys)


def _reading(layout: Layout, places: Mapping[str, Place | None]) -> Reading:
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
        problems=tuple(_problems(places, found, parts)),
    )


def _denoiser(places: Iterable[Place]) -> str:
    """``unet`` where any path is one that only a UNet has, else ``transformer``."""
    paths = (place.module.partition(".")[2] for place in places)
    return "unet" if any(path.partition(".")[0] in UNET_TOPS for path in paths) else "transformer"


def _settled(place: Place, denoiser: str) -> Place:
    role, _, path = place.module.partition(".")
    return replace(place, module=f"{denoiser}.{path}") if role == DENOISER else place


def _problems(places: Mapping[str, Place | None], found: Mapping[str, Place], parts: Mapping[str, Place]) -> Iterable[str]:
    if strangers := [key for key, place in places.items() if place is None]:
        yield f"{len(strangers)} tensors have names that this layout has not: {first_few(strangers)}"
    if refused := [key for key, place in found.items() if place.slot == "refused"]:
        reasons = sorted({REFUSED[ending] for key in refused for ending in REFUSED if key.endswith(f".{ending}")})
        yield f"{len(refused)} tensors are no LoRA but {', '.join(reasons)}: {first_few(refused)}"
    twice = [place for place, count in Counter((p.module, p.slot, p.name) for p in parts.values()).items() if count > 1]
    if twice:
        yield f"{len(twice)} parts are there twice under two spellings: {first_few([f'{m} {slot}' for m, slot, _ in twice])}"
    if len(names := sorted({place.name for place in parts.values()})) > 1:
        yield f"it mixes {len(names)} adapter slots ({first_few(names)}): save each adapter into a file of its own"
