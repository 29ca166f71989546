"""``reelora plan``"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AsJson, Overrides, SatConfig, read_train_config, refuse_unused

if TYPE_CHECKING:
    from reelora.plan import Choice

__all__ = ["plan"]


def plan(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A folder in diffusers' layout, a hub id, or pocket.", show_default="pocket"),
    ] = None,
    frames: Annotated[int | None, typer.Option("--frames", min=1, help="Number of frames.", show_default="the model's")] = None,
    height: Annotated[int | None, typer.Option("--height", min=1, help="Pixels.", show_default="the model's")] = None,
    width: Annotated[int | None, typer.Option("--width", min=1, help="Pixels.", show_default="the model's")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps of the sampler.", show_default="the model's")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Videos made at once.", show_default="1")
    ] = None,
    unguided: Annotated[bool, typer.Option("--unguided", help="Without guidance, which doubles every step.")] = False,
    adapter_rank: Annotated[
        int | None, typer.Option("--adapter-rank", min=0, help="Sum of the ranks of the adapters that act.", show_default="0")
    ] = None,
    fused: Annotated[bool, typer.Option("--fused", help="The adapters are fused into the weights.")] = False,
    train: Annotated[
        Path | None, typer.Option("--train", metavar="RUN.toml", help="Plan a training run instead, by its settings.")
    ] = None,
    overrides: Overrides = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="auto, cpu, cuda ...; or a device to pretend: rtx-4090, a100, 24GiB.",
            show_default="auto",
        ),
    ] = None,
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help="Pretend that it has this much: 24GiB.")] = "",
    precision: Annotated[str, typer.Option("--precision", help="auto, bf16, fp16 or fp32.")] = "auto",
    sat_config: SatConfig = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show every way there is, what it takes, and why not.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say how a job is best run and what it takes, before anything is loaded; also for a device that you do not have.

    Example: reelora plan zai-org/CogVideoX-5b --device rtx-4090 --explain
    """
    from reelora import recipes

    if train is not None or overrides:
        given = {"--frames": frames, "--height": height, "--width": width, "--steps": steps, "--batch-size": batch_size}
        others = {"--unguided": unguided, "--adapter-rank": adapter_rank, "--fused": fused, "--sat-config": sat_config}
        told = {"--precision": None if precision == "auto" else precision}
        refuse_unused({**given, **others, **told}, "in the plan of a training run, whose settings say all (--set)")
        choice = recipes.plan_run(read_train_config(train, overrides, model=model), device=device, memory=memory)
    else:
        asked = {
            "num_frames": frames,
            "height": height,
            "width": width,
            "steps": steps,
            "batch_size": batch_size,
            "adapter_rank": adapter_rank,
            "is_guided": False if unguided else None,
            "is_fused": fused or None,
        }
        choice = recipes.plan_job(
            model or recipes.POCKET,
            settings={name: value for name, value in asked.items() if value is not None},
            device=device or "auto",
            memory=memory,
            precision=recipes.check_precision(precision),
            sat_config=sat_config,
        )
    print(json.dumps(choice.as_json()) if as_json else _told(choice, explain=explain))
    if not choice.fits:
        raise typer.Exit(2)


def _told(choice: "Choice", *, explain: bool) -> str:
    if explain:
        return f"{choice.explain()}\n\n{choice.answer}"
    return "\n".join([choice.what, choice.answer, *choice.notes])
