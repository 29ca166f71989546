"""Adapters that a session used lately: what comes back is neither read nor stacked again."""

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reelora.adapters import Adapter, read_adapter
from reelora.lora import Rack, models_of
from reelora.tensorio import expanded

from .uses import Adapters, AdapterUse, HeldAdapter, strength_of

__all__ = ["Shelf"]

_KEPT = 8
"""Adapters that are held after a call that used fewer."""

_MOSTLY = 0.5
"""Modules in which rounding would take more than this share of the update keep branches when the rest is fused."""

_BESIDE = "adapter_config.json"
"""A file in which the scale of another may stand."""


class Shelf:
    """Reads adapters, and lets them act on a model for the length of a block.

    What acts is told by content alone, so that whatever was used before, the same adapters give the same bits.
    """

    def __init__(self) -> None:
        self._held: OrderedDict[Hashable, HeldAdapter] = OrderedDict()
        self._rack: _RackOf | None = None

    def resolve(self, adapters: Adapters) -> Sequence[AdapterUse]:
        """Read what is named by path and was not read before, or was written anew since.

        Raises ConfigError for what is no strength, UnknownScaleError, and what reading raises.
        """
        uses = [self._use(key, value) for key, value in adapters.items()]
        for use in uses:
            use.adapter.check_scale()
        _drop_oldest(self._held, keep=len(uses))
        return uses

    @contextmanager
    def using(self, model: Any, uses: Sequence[AdapterUse], *, is_fused: bool) -> Iterator[None]:
        """Run a model or bundle with adapters at their strengths; afterwards it is exactly what it was before.

        Raises what `reelora.Rack` raises, before anything is touched.
        """
        if not uses:
            yield
            return
        if self._rack is None or not self._rack.fits(model):
            self._rack = _RackOf(model)
        with self._rack.using(uses, is_fused=is_fused):
            yield

    def _use(self, key: str | Path, value: object) -> AdapterUse:
        adapter, strength = strength_of(key, value)
        if adapter is not None:
            held, is_file = self._hold(id(adapter), adapter), isinstance(key, Path)
        else:
            held, is_file = self._read(key), True
        name = Path(key).name.removesuffix(".safetensors") if is_file else str(key)
        return AdapterUse(name=name, held=held, strength=strength, source=str(key) if is_file else "")

    def _read(self, path: str | Path) -> HeldAdapter:
        stamp = _stamp(expanded(path))
        if stamp in self._held:
            return self._hold(stamp, self._held[stamp].adapter)
        adapter = read_adapter(path)
        return self._hold(stamp or id(adapter), adapter)

    def _hold(self, key: Hashable, adapter: Adapter) -> HeldAdapter:
        """An adapter never changes, so that its identity stands for it as long as it is held."""
        held = self._held.pop(key, None) or HeldAdapter(adapter)
        self._held[key] = held
        return held


class _RackOf:
    """A rack of one state of a model: as long as its modules are the same."""

    def __init__(self, model: Any) -> None:
        self._state = _state_of(model)
        self._rack = Rack(model, keep_branches_over=_MOSTLY)
        self._names: OrderedDict[str, None] = OrderedDict()

    def fits(self, model: Any) -> bool:
        return self._state == _state_of(model)

    @contextmanager
    def using(self, uses: Sequence[AdapterUse], *, is_fused: bool) -> Iterator[None]:
        named = _named(uses)
        for name, use in named.items():
            if name not in self._names:
                self._rack.load(name, use.adapter)
            self._names[name] = None
            self._names.move_to_end(name)
        for name in _drop_oldest(self._names, keep=len(uses)):
            self._rack.unload(name)
        if is_fused:
            self._rack.fuse()  # before anything acts: nothing is stacked that would be fused at once
        try:
            with self._rack.using({name: use.strength for name, use in named.items()}):
                yield
        finally:
            self._rack.restore()


def _state_of(model: Any) -> tuple[object, ...]:
    """What a rack takes for given: where adapters can act, and in which dtype."""
    networks = models_of(model).values()
    return tuple((network.dtype, *network.modules()) for network in networks)


def _named(uses: Sequence[AdapterUse]) -> Mapping[str, AdapterUse]:
    """Uses by the content of their adapters, with a number since one may be used twice: the same for the same uses."""
    seen: Counter[str] = Counter()
    named = {}
    for use in sorted(uses, key=lambda use: use.strength):
        content = use.held.content_hash
        seen[content] += 1
        named[f"{content} {seen[content]}"] = use
    return named


def _drop_oldest(held: OrderedDict[Any, Any], *, keep: int) -> list[Any]:
    """The keys that were not used for longest, taken out."""
    return [held.popitem(last=False)[0] for _ in range(len(held) - max(keep, _KEPT))]


def _stamp(path: Path) -> Hashable:
    """What changes whenever a file is written anew; None for a folder or a hub id, which are looked through every time."""
    if not path.is_file():
        return None
    files = (path, path.with_name(_BESIDE))
    return str(path.resolve()), *((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in _stats(files))


def _stats(files: Sequence[Path]) -> Iterator[Any]:
    return (file.stat() for file in files if file.is_file())
