"""Stacks that were used lately, within a budget of bytes."""

from collections import OrderedDict

from .stack import Stack

__all__ = ["Key", "StackCache"]

Key = tuple[tuple[str, tuple[str, ...]], ...]
"""The adapters of a stack by name, each with the sites where it acts."""


class StackCache:
    """Drops the stack that was used longest ago when a new one needs its room.

    Never dropped are the stack that acts, and stacks all of whose adapters are pinned.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._stacks: OrderedDict[Key, Stack] = OrderedDict()
        self._acting: Key = ()
        self._pinned: set[str] = set()

    @property
    def pinned(self) -> frozenset[str]:
        """The adapters that are pinned."""
        return frozenset(self._pinned)

    @property
    def size_bytes(self) -> int:
        """Bytes of all stacks that are kept."""
        return sum(stack.size_bytes for stack in self._stacks.values())

    def devices_of(self, adapter: str) -> list[str]:
        """Where stacks with this adapter are kept."""
        holding = [stack for key, stack in self._stacks.items() if any(held == adapter for held, _ in key)]
        return sorted({str(device) for stack in holding for device in stack.devices})

    def find(self, key: Key) -> Stack | None:
        """The stack of these adapters, if it is kept."""
        return self._stacks.get(key)

    def put(self, key: Key, stack: Stack) -> None:
        """Keep a stack as the one used last."""
        self._stacks[key] = stack
        self._stacks.move_to_end(key)
        over = self.size_bytes - self._limit_bytes
        for other in [other for other in self._stacks if other != key and not self._stays(other)]:
            if over <= 0:
                return
            over -= self._stacks.pop(other).size_bytes

    def act(self, key: Key) -> None:
        """Say which stack acts now; an empty key is none."""
        self._acting = key

    def bytes_missing_for(self, key: Key, stack: Stack) -> int:
        """How many bytes the budget lacks to keep this stack beside those that are never dropped; 0 if it suffices."""
        beside = sum(held.size_bytes for other, held in self._stacks.items() if other != key and self._stays(other))
        return max(0, beside + stack.size_bytes - self._limit_bytes)

    def pin(self, adapter: str) -> None:
        """Never drop the stacks of this and other pinned adapters."""
        self._pinned.add(adapter)

    def unpin(self, adapter: str) -> None:
        """Treat its stacks as others again."""
        self._pinned.discard(adapter)

    def forget(self, adapter: str) -> None:
        """Drop every stack that holds this adapter."""
        self.unpin(adapter)
        for key in [key for key in self._stacks if any(held == adapter for held, _ in key)]:
            del self._stacks[key]

    def _stays(self, key: Key) -> bool:
        return key == self._acting or self._pinned.issuperset(adapter for adapter, _ in key)
