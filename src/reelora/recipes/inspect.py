"""``inspect``: what a file says of itself; nothing here needs diffusers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from reelora.adapters import (
    ModuleReport,
    advice_on,
    check_fits,
    compared_with_base,
    content_hash,
    facts_of,
    open_source,
    read_adapter,
    report_modules,
)
from reelora.components import open_weights
from reelora.tensorio import webui_hashes

from .listener import Listener
from .model import find_model
from .numbers import finite

__all__ = ["Inspection", "inspect"]

CHECKED = {
    "sshs_model_hash": "it was changed after it was written",
    "modelspec.hash_sha256": "it was changed after it was written, or they were hashed in another order than they lie in",
}
"""The stored hashes that can be checked against the bytes behind the header, and what it means where they differ.

The legacy hash cannot: it is of the file as it was before that hash was stored. Source: Stability AI's ModelSpec; sd-scripts,
library/train_util.py, ``precalculate_safetensors_hashes``.
"""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything that is known of an adapter."""

    facts: dict[str, object]
    """From the header alone, and the hashes if values were read."""
    modules: tuple[ModuleReport, ...]
    """From the values; empty unless they were read."""
    advice: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Plain values; ``values`` are left out where nothing was read, and an infinite ratio, which JSON lacks, is null."""
        rows = [{name: finite(value) for name, value in asdict(module).items()} for module in self.modules]
        return {**self.facts, "advice": list(self.advice), **({"values": rows} if rows else {})}


def inspect(
    path: str,
    *,
    deep: bool = False,
    base: str | None = None,
    alpha: float | None = None,
    producer: str | None = None,
    sat_config: Sequence[Path] = (),
    listener: Listener,
) -> Inspection:
    """An adapter's header; with ``deep`` its values too, with ``base`` (as `find_model` takes it) also beside its weights.

    Raises MismatchError where ``base`` has not the layers, and what `read_adapter` raises.
    """
    source = open_source(path)
    adapter = read_adapter(source.path, alpha=alpha, producer=producer, sat_config=tuple(sat_config))
    facts = facts_of(adapter, source.metadata)
    if not deep and base is None:
        return Inspection(facts=facts, modules=(), advice=tuple(advice_on(adapter, [])))
    role = adapter.roles[0]
    weights = None
    if base is not None:
        weights = open_weights(find_model(base), role)
        check_fits(adapter, weights, role)
        facts["base_match"] = compared_with_base(adapter, weights)
    hashes, doubts = _file_hashes(source.path, source.metadata)
    facts |= {"content_hash": content_hash(adapter), **hashes}
    modules = tuple(_watched(report_modules(adapter, weights, role), len(adapter.pairs), listener))
    return Inspection(facts=facts, modules=modules, advice=(*doubts, *advice_on(adapter, list(modules))))


def _file_hashes(path: Path, metadata: Mapping[str, str]) -> tuple[dict[str, object], list[str]]:
    """The hashes of a safetensors file, the names of those that its header tells rightly, and a sentence on each other one."""
    if path.suffix != ".safetensors":
        return {}, []
    found = webui_hashes(path)
    told = {name: metadata[name].lower().removeprefix("0x") for name in CHECKED if name in metadata}
    right = [name for name, text in told.items() if text == found["sshs_model_hash"]]
    doubts = [f"The file's {name} is not that of its tensors: {CHECKED[name]}." for name in told if name not in right]
    return {**found, "hashes_right": right}, doubts


def _watched(modules: Iterable[ModuleReport], total: int, listener: Listener) -> Iterator[ModuleReport]:
    for done, module in enumerate(modules, start=1):
        yield module
        listener.progress("inspect", done, total)
