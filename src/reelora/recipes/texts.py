"""Text of unknown origin, as a terminal may show it."""

__all__ = ["plain"]


def plain(text: str, *, width: int = 400) -> str:
    """One line, in which what is no visible letter is spelled out (``\\\\x1b``), and which is cut where it is too long.

    Control characters could otherwise clear the screen, rename the window, or turn the direction of what is written.
    """
    cut = text if len(text) <= width else text[:width]
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in cut)
    return shown if cut == text else f"{shown} ... ({len(text):,} characters)"
