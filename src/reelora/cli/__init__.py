"""The command line: one file per verb; each parses, calls its recipe and prints."""

from .app import main

__all__ = ["main"]
