"""``python -m reelora`` is ``reelora``."""

from reelora.cli import main

main()
