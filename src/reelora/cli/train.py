"""``reelora train``"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import ConfigFile, Data, Device, Model, Overrides, read_train_config

if TYPE_CHECKING:
    from reelora.recipes import TrainOutcome

__all__ = ["train"]


def train(
    config: ConfigFile = None,
    data: Data = None,
    model: Model = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The run's folder; a run found there goes on.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps in all.")] = None,
    device: Device = None,
    overrides: Overrides = None,
    init: Annotated[
        Path | None, typer.Option("--init", metavar="FILE", help="Write a commented settings file and end.")
    ] = None,
    show_timesteps: Annotated[
        Path | None,
        typer.Option("--show-timesteps", metavar="FILE", help="Write a page on which noise levels are seen, and end."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Train an adapter on a folder of captioned clips, or go on with the run in the output folder.

    Example: reelora train --data clips/ --output runs/star --steps 200
    """
    from reelora import recipes

    from .terminal import Terminal

    settings = read_train_config(
        config, overrides, data__folder=data, model=model, output=output, loop__steps=steps, device=device
    )
    if init is not None:
        recipes.write_new_text(init, settings.commented_toml())
        print(f"Wrote {init}. Next: reelora train {init}")
        return
    if show_timesteps is not None:
        recipes.write_timesteps_page(settings, show_timesteps)
        print(f"Wrote {show_timesteps}.")
        return
    with Terminal() as terminal:
        outcome = recipes.train(settings, listener=terminal)
    result = outcome.result
    if outcome.is_first:
        _print(outcome, num_steps=settings.loop.steps, as_json=as_json)
    if not result.is_complete:
        raise typer.Exit(130)


def _print(outcome: "TrainOutcome", *, num_steps: int, as_json: bool) -> None:
    """The answer of a run."""
    result = outcome.result
    if as_json:
        answer = {"step": result.step, "is_complete": result.is_complete, "seconds": result.seconds}
        files = {"adapter": str(outcome.adapter), "report": str(outcome.report)}
        finding = outcome.verdict.finding if outcome.verdict else None
        print(json.dumps(answer | files | {"finding": finding, "best_step": result.best_step}))
    elif result.is_complete:
        print(f"Trained {result.step} steps in {result.seconds:.0f} s: {outcome.adapter}\nReport: {outcome.report}")
        if outcome.best.exists():
            print(f"The held-out clips were best at step {result.best_step}: {outcome.best}")
    else:
        print(f"Stopped after step {result.step} of {num_steps}: {result.stopped_by}. The same command goes on.")
