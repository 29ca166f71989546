"""``reelora precompute``"""

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, ConfigFile, Data, Device, Model, Overrides, read_train_config

__all__ = ["precompute"]


def precompute(
    config: ConfigFile = None,
    data: Data = None,
    model: Model = None,
    device: Device = None,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what every clip becomes and why.")] = False,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="FILE.png", help="Draw exactly what the model will see, with captions.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Encode clips and captions once, into the cache that training reads.

    Example: reelora precompute --data clips/ --dry-run --sheet sheet.png

    It can be stopped at any time and goes on where it was; what is there already is not made again, unless it is damaged.
    """
    from reelora import recipes

    from .terminal import Terminal

    settings = read_train_config(config, overrides, data__folder=data, model=model, device=device)
    if sheet is not None:
        recipes.check_sheet(sheet, settings.data)
    with Terminal() as terminal:
        place = recipes.find_device(settings.device)
        plan = recipes.plan_data(settings.model, settings.data, listener=terminal, is_read_whole=True)
        pages = recipes.write_sheet(plan, sheet, listener=terminal) if sheet else []
        answer = {**plan.as_json(), "sheet": [str(page) for page in pages]}
        if not dry_run:
            summary, _ = recipes.precompute_kind(plan, settings, device=place, listener=terminal, is_read_whole=True)
            answer |= {"manifest": str(summary.manifest), "encoded_clips": summary.encoded_videos}
    if as_json:
        print(json.dumps(answer))
        return
    for line in [*(plan.lines() if dry_run else []), *(f"Sheet: {page}" for page in pages)]:
        print(recipes.plain(line, width=2000))
