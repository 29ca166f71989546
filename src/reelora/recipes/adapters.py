"""The verbs on adapters as data: convert, merge, resize, extract, diff."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from reelora.adapters import (
    WRITTEN,
    Adapter,
    Kept,
    Written,
    algebra,
    changed_elsewhere,
    check_destination,
    fingerprints_of,
    read_adapter,
    write_with_report,
)
from reelora.components import open_weights
from reelora.errors import ConfigError, first_few, nearest

from .adapter_texts import read_adapters
from .files import check_parent
from .listener import Listener
from .machine import DTYPES
from .model import find_model
from .texts import plain

__all__ = ["Resized", "Target", "convert", "diff", "extract", "merge", "parse_size", "read_one", "resize"]

ENDINGS = {".safetensors": "diffusers", ".pt": "sat", "": "peft"}
"""What an output of this ending is, where nobody says it."""
DENOISERS = ("transformer", "unet")
"""The roles by whose weights an adapter knows its base."""
WORST = 3
"""Modules that are named as those that kept least."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where an adapter goes and in which form.

    Raises ConfigError for one that cannot be, OSError for a folder that is missing or takes no file, before any work is done.
    """

    path: Path
    layout: str = ""
    """A layout that can be written; empty: told by the ending of the path."""
    dtype: str = ""
    """fp32, bf16 or fp16; empty: as stored."""
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.layout and self.layout not in WRITTEN:
            raise ConfigError(f"No layout that can be written is called {self.layout!r}: {nearest(self.layout, WRITTEN)}")
        if not self.layout and self.path.suffix not in ENDINGS:
            raise ConfigError(f"{self.path}: say the layout with --to ({', '.join(WRITTEN)}); the ending does not tell it.")
        if self.dtype and self.dtype not in DTYPES:
            raise ConfigError(f"No dtype is called {self.dtype!r}: {nearest(self.dtype, DTYPES)}")
        if self.path.exists() and not (self.overwrite and self.path.is_file()):
            raise ConfigError(
                f"{self.path} is there already and is left as it is; name another one, or a file with --overwrite."
            )
        check_destination(self.path, self._form)
        check_parent(self.path)

    def write(self, adapter: Adapter, listener: Listener) -> Written:
        """Write with proof, and say what the layout could not hold."""
        written = write_with_report(adapter, self.path, self._form, dtype=DTYPES.get(self.dtype))
        for note in written.notes:
            listener.say(plain(note))
        size = sum(file.stat().st_size for file in (self.path.rglob("*") if self.path.is_dir() else [self.path]))
        listener.say(f"{self.path}: {self._form}, {size / 1e6:.1f} MB, largest relative difference {written.proof:.1e}")
        return written

    @property
    def _form(self) -> str:
        return self.layout or ENDINGS[self.path.suffix]


@dataclass(frozen=True, kw_only=True)
class Resized:
    """A resized adapter: its file, and what became of every module."""

    written: Written
    ranks: dict[str, int]
    kept: Kept

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        modules = {name: {"rank": rank, "kept": self.kept.modules[name]} for name, rank in self.ranks.items()}
        return {
            "path": str(self.written.path),
            "layout": self.written.layout,
            "proof": self.written.proof,
            "kept": self.kept.total,
            "modules": modules,
        }

    def lines(self) -> list[str]:
        """What was kept in all, and of the modules that kept least."""
        worst = sorted(self.ranks, key=self.kept.modules.__getitem__)[:WORST]
        rows = [f"  {self.kept.modules[name]:.6g} at rank {self.ranks[name]} in {plain(name)}" for name in worst]
        return [f"{_ranks(self.ranks.values())}; share of the energy kept: {self.kept.total:.6g} in all, least", *rows]


def read_one(
    text: str, *, alpha: float | None, producer: str | None, sat_config: Sequence[Path], listener: Listener
) -> Adapter:
    """An adapter by path or hub id, with a line that says what it is and which rule says how strong."""
    adapter = read_adapter(text, alpha=alpha, producer=producer, sat_config=tuple(sat_config))
    listener.say(f"{text}: {adapter.layout}, {len(adapter.pairs)} modules; scale by {adapter.scale_source}")
    return adapter


def convert(adapter: Adapter, target: Target, *, listener: Listener) -> Written:
    """The same adapter in another dialect or dtype."""
    return target.write(adapter, listener)


def merge(
    texts: Sequence[str],
    target: Target,
    *,
    method: str,
    rank: int | None,
    keep: float | None,
    density: float | None,
    seed: int,
    listener: Listener,
) -> Written:
    """Adapters from ``FILE[=STRENGTH][,alpha=64|,from=PRODUCER]`` into one."""
    parts = list(read_adapters(texts).values())
    merged = algebra.merge(
        parts, method=method, rank=rank, keep=keep, density=density, seed=seed, on_progress=_progress(listener, "merge")
    )
    _say_kept(merged, listener)
    return target.write(merged, listener)


def resize(
    adapter: Adapter, target: Target, *, rank: int | None, keep: float | None, size_bytes: int | None, listener: Listener
) -> Resized:
    """The same adapter at another rank, energy or size."""
    small, kept = algebra.resize_with_report(
        adapter, rank=rank, keep=keep, size_bytes=size_bytes, on_progress=_progress(listener, "resize")
    )
    written = target.write(small, listener)
    resized = Resized(written=written, ranks={name: pair.rank for name, pair in small.pairs.items()}, kept=kept)
    for line in resized.lines():
        listener.say(line)
    return resized


def extract(
    base: str, tuned: str, target: Target, *, role: str, rank: int | None, keep: float | None, targets: str, listener: Listener
) -> Written:
    """An adapter that makes one checkpoint of another, each a model or weights; it knows its base."""
    before, after = (open_weights(find_model(name), role) for name in (base, tuned))
    adapter = algebra.extract(
        before, after, rank=rank, keep=keep, role=role, target_modules=targets, on_progress=_progress(listener, "extract")
    )
    if left := changed_elsewhere(before, after, target_modules=targets):
        listener.say(f"{len(left)} tensors changed that no pair holds and are left out: {plain(first_few([*left]))}")
    _say_kept(adapter, listener)
    known = {"base_model": Path(base).name, **fingerprints_of(before)} if role in DENOISERS else {}
    return target.write(adapter.with_provenance(**known), listener)


def diff(first: str, second: str, *, listener: Listener) -> algebra.Difference:
    """How two adapters, each from ``FILE[,alpha=64|,from=PRODUCER]``, differ module by module."""
    (one, _), (other, _) = (next(iter(read_adapters([text]).values())) for text in (first, second))
    return algebra.diff(one, other, on_progress=_progress(listener, "diff"))


def parse_size(text: str) -> int:
    """Bytes of a size such as ``50MB``, ``1.5 GB`` or ``64MiB``; ConfigError for any other text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?)?B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"The size is {text!r}; write a number and a unit, as in 50MB or 1.5GB.")
    unit = (match[2] or "").lower()
    factor = (1024 if unit.endswith("i") else 1000) ** " kmg".index(unit[:1] or " ")
    return int(float(match[1]) * factor)


def _say_kept(adapter: Adapter, listener: Listener) -> None:
    if kept := adapter.provenance.get("energy_kept"):
        listener.say(f"{_ranks(adapter.ranks)}; share of the energy kept: {plain(kept)}")


def _ranks(ranks: Collection[int]) -> str:
    low, high = min(ranks), max(ranks)
    return f"rank {low}" if low == high else f"ranks {low} to {high}"


def _progress(listener: Listener, task: str) -> algebra.OnProgress:
    return lambda done, total, name: listener.progress(task, done, total)
