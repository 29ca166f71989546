"""Entries of the cache as they are read again and again: compared with their hash once, and held while there is room."""

from collections.abc import Mapping
from pathlib import Path
from threading import Lock

from torch import Tensor

from reelora.errors import DataError

from .entries import EntryKind, read_entry, read_whole_entry

__all__ = ["EntryMemory"]


class EntryMemory:
    """Reads entries of the cache in ``folder``; several threads may.

    Nothing is held until `hold` allows it: tensors are then views of mapped files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: set[str] = set()
        self._held: dict[str, Mapping[str, Tensor]] = {}
        self._max_bytes = self._held_bytes = 0
        self._counting = Lock()

    @property
    def held_bytes(self) -> int:
        """Of all tensors that are held now."""
        return self._held_bytes

    def hold(self, max_bytes: int) -> None:
        """Hold the entries that are read from now on, as long as all together take at most ``max_bytes``.

        What does not fit stays on the disk: whoever reads all of them in turn would push out each before its next use. Where
        more is held already, all of that is let go of.
        """
        with self._counting:
            self._max_bytes = max_bytes
            if self._held_bytes > max_bytes:
                self._held, self._held_bytes = {}, 0

    def read(self, kind: EntryKind, key: str, *, fingerprint: str | None = None) -> Mapping[str, Tensor]:
        """The tensors of an entry, in which nobody may write.

        At the first time every value is compared with the stored hash, and this with ``fingerprint``. Raises DataError where
        the entry is missing, damaged or another one.
        """
        if (held := self._held.get(key)) is not None:
            return held
        if key in self._known:
            return self._kept(key, read_entry(self._folder, kind, key))
        store = read_whole_entry(self._folder, kind, key)
        if fingerprint not in (None, store.metadata["fingerprint"]):
            raise DataError(
                f"{kind.path(self._folder, key)}: holds other values than when the data set was made: it was made anew since. "
                "Run `reelora precompute` again."
            )
        self._known.add(key)
        return self._kept(key, store)

    def _kept(self, key: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Copies of the tensors, where there is room for them."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        with self._counting:
            if key in self._held or self._held_bytes + size > self._max_bytes:
                return self._held.get(key, tensors)
            self._held_bytes += size
            self._held[key] = {name: tensor.clone() for name, tensor in tensors.items()}
            return self._held[key]
