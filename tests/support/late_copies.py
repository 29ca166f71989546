"""Copies that are made at the last moment, for what must not depend on when they are made."""

from torch import Tensor

__all__ = ["LateCopies"]

_POISON = 0xFF
"""Bytes of this make NaN in every floating dtype, and a number that no weight is."""


class LateCopies:
    """Spoils a buffer as soon as a copy to it begins, and fills it no sooner than the copy is waited for."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        """Addresses of what was copied, in order."""
        self.num_waited = 0

    def start(self, buffer: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        self.begun.append(source.data_ptr())
        buffer.fill_(_POISON)
        return buffer, source

    def finish(self, ticket: object) -> None:
        assert isinstance(ticket, tuple)
        buffer, source = ticket
        buffer.copy_(source)
        self.num_waited += 1
