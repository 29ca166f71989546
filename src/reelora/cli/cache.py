"""``reelora cache``"""

import json
import sys
from math import inf
from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson

__all__ = ["app"]

DAMAGED = 2

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A cache, or the folder of clips that holds one.")]

app = typer.Typer(name="cache", help="What the cache of clips holds: ls, verify, prune.", no_args_is_help=True)


@app.command("ls")
def list_sets(folder: Folder, as_json: AsJson = False) -> None:
    """List the data sets of a cache, each in one size and for one model, clips of a class, and what no data set uses.

    Example: reelora cache ls clips/
    """
    from reelora import recipes

    print(json.dumps(recipes.list_cache(folder)) if as_json else "\n".join(recipes.list_lines(folder)))


@app.command("verify")
def verify(folder: Folder, as_json: AsJson = False) -> None:
    """Read every entry and compare it with its hash. Ends with 2 if any is damaged; precompute makes those anew.

    Example: reelora cache verify clips/
    """
    from reelora import recipes

    from .terminal import Terminal

    with Terminal() as terminal:
        damaged = recipes.verify_files(folder, listener=terminal)
    rows = [{"path": str(damage.path), "reason": damage.reason} for damage in damaged]
    print(json.dumps({"damaged": rows}) if as_json else "\n".join([*(row["reason"] for row in rows), f"{len(rows)} damaged"]))
    if damaged:
        sys.exit(DAMAGED)


@app.command("prune")
def prune(
    folder: Folder,
    days: Annotated[
        float,
        typer.Option(
            "--days",
            min=0,
            help="Also data sets and clips of a class that no precompute or training used for so many days.",
            show_default="none",
        ),
    ] = inf,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete what no data set uses, what is damaged, and what killed processes left behind.

    Example: reelora cache prune clips/ --days 30 --dry-run
    """
    from reelora import recipes

    from .terminal import Terminal

    with Terminal() as terminal:
        pruning, size_bytes = recipes.prune_cache(folder, days=days, dry_run=dry_run, listener=terminal)
    if as_json:
        rows = [{"path": str(file.path), "reason": file.reason} for file in pruning.files]
        print(json.dumps({"files": rows, "bytes": size_bytes, "is_deleted": not dry_run}))
        return
    print("\n".join(recipes.pruning_lines(pruning, size_bytes, dry_run=dry_run)))
