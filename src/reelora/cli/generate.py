"""``reelora generate``"""

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Model, RolePaths, SatConfig, read_role_paths

__all__ = ["generate"]


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What the video shows; one video for each.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="FILE.mp4, .gif, or .png for frames; several videos are numbered.")
    ] = Path("video.mp4"),
    model: Model = None,
    sat_config: SatConfig = None,
    path: RolePaths = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            "-a",
            metavar="FILE[=STRENGTH][,alpha=64|,from=PRODUCER]",
            help="As often as wanted; strength 1 is as trained. alpha or from where the file does not say its strength.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the first video; the next has one more.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the sampler.", show_default="the model's")] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="How closely to follow the prompt; 1 is off.", show_default="the model's")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option("--negative-prompt", help="What guidance leads away from.")] = None,
    frames: Annotated[int | None, typer.Option("--frames", help="Number of frames.", show_default="the model's")] = None,
    height: Annotated[int | None, typer.Option("--height", help="Pixels.", show_default="the model's")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Pixels.", show_default="the model's")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Videos made at once.")] = None,
    sampling: Annotated[
        str | None,
        typer.Option("--sampling", help="diffusers, or sat: as CogVideo's original code.", show_default="diffusers"),
    ] = None,
    solver: Annotated[str | None, typer.Option("--solver", help="With sat: dpm or ddim.", show_default="dpm")] = None,
    guidance_schedule: Annotated[
        str | None,
        typer.Option("--guidance-schedule", help="With sat: constant or dynamic.", show_default="dynamic with sat"),
    ] = None,
    guidance_exponent: Annotated[
        int | None, typer.Option("--guidance-exponent", help="Of the dynamic schedule.", show_default="5")
    ] = None,
    device: Device = None,
    precision: Annotated[str, typer.Option("--precision", help="auto, bf16, fp16 or fp32.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Make videos of prompts, with any number of adapters.

    Example: reelora generate "a red circle moves left on a grey background" -o circle.mp4
    """
    from reelora import recipes

    from .terminal import Terminal

    asked = {
        "seed": seed,
        "steps": steps,
        "guidance": guidance,
        "negative_prompt": negative_prompt,
        "num_frames": frames,
        "height": height,
        "width": width,
        "batch_size": batch_size,
        "sampling": sampling,
        "solver": solver,
        "guidance_schedule": guidance_schedule,
        "guidance_exponent": guidance_exponent,
    }
    with Terminal() as terminal:
        files = recipes.generate(
            model or (None if sat_config else recipes.POCKET),
            prompts,
            output,
            sat_config=sat_config or None,
            paths=read_role_paths(path) or None,
            adapters=recipes.read_adapters(adapter or []),
            device=device or "auto",
            precision=recipes.check_precision(precision),
            overwrite=overwrite,
            listener=terminal,
            settings={name: value for name, value in asked.items() if value is not None},
        )
    print("\n".join(map(str, files)))
