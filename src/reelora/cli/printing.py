"""Facts on stdout: rows for people, JSON for programs."""

import json
import sys
from collections.abc import Mapping
from shutil import get_terminal_size
from textwrap import wrap

__all__ = ["print_facts"]

LABEL_WIDTH = 24


def print_facts(facts: Mapping[str, object], *, as_json: bool) -> None:
    """One row for each fact that is not empty, wrapped where a terminal shows them; or one line of JSON."""
    from reelora import recipes

    if as_json:
        print(json.dumps(facts))
        return
    rows = recipes.fact_rows(facts)
    width = min(LABEL_WIDTH, max(len(label) for label, _ in rows))
    room = max(LABEL_WIDTH, get_terminal_size().columns - width - 2) if sys.stdout.isatty() else sys.maxsize
    for label, text in rows:
        lines = f"\n{'':<{width}}  ".join(wrap(text, room))
        print(f"{label:<{width}}  {lines}".rstrip())
