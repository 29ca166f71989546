"""What lies in a folder, for errors about what does not."""

from pathlib import Path

from reelora.errors import first_few

__all__ = ["holdings"]


def holdings(folder: Path) -> str:
    """The first names in a folder, sorted; ``nothing`` where it is empty."""
    return first_few(sorted(entry.name for entry in folder.iterdir()), count=8) or "nothing"
