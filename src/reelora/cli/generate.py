"""``reelora generate``"""

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Model, RolePaths, SatConfig, read_role_paths

__all__ = ["generate"]


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What the video shows; one video for each.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="FILE.mp4, .webm, .gif, .webp, or .png for frames; several videos are numbered.",
            show_default="video.mp4, or image.png",
        ),
    ] = None,
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
    image: Annotated[
        str | None, typer.Option("--image", help="The picture that it begins with (image-to-video models).")
    ] = None,
    video: Annotated[str | None, typer.Option("--video", help="The video to begin with (text-to-video models).")] = None,
    video_strength: Annotated[
        float | None, typer.Option("--video-strength", help="How much of the video is made anew.", show_default="0.8")
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option("--fit", help="How the picture or video comes to size: crop, pad, ...", show_default="crop"),
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="More prompts, one on each line; .jsonl with settings of their own."),
    ] = None,
    like: Annotated[
        Path | None, typer.Option("--like", metavar="VIDEO", help="Make a video of ours again; other options change it.")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="NAME=VALUE,...", help="Every combination, and a plot: style=0,0.5,1 or seed=1,2."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the first video; the next has one more.")] = None,
    videos_per_prompt: Annotated[int, typer.Option("--videos", min=1, help="Videos of each prompt.")] = 1,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the scheduler.", show_default="the model's")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", help="dpm or ddim; for stills also euler, pndm ...", show_default="the model's"),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="How closely to follow the prompt; 1 is off.", show_default="the model's")
    ] = None,
    guidance_schedule: Annotated[
        str | None,
        typer.Option("--guidance-schedule", help="constant, dynamic (as released) or index (rising).", show_default="constant"),
    ] = None,
    guidance_exponent: Annotated[
        int | None, typer.Option("--guidance-exponent", help="Of a schedule that is not constant.", show_default="5")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option("--negative-prompt", help="What guidance leads away from.")] = None,
    frames: Annotated[int | None, typer.Option("--frames", help="Number of frames.", show_default="the model's")] = None,
    height: Annotated[int | None, typer.Option("--height", help="Pixels.", show_default="the model's")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Pixels.", show_default="the model's")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Videos made at once.")] = 1,
    adapters_as: Annotated[
        str | None,
        typer.Option("--adapters-as", help="fused into the weights, or branches beside them.", show_default="by the work"),
    ] = None,
    sampling: Annotated[
        str | None,
        typer.Option("--sampling", help="diffusers, or sat: as CogVideo's original code.", show_default="diffusers"),
    ] = None,
    device: Device = None,
    precision: Annotated[str | None, typer.Option("--precision", help="auto, bf16, fp16 or fp32.", show_default="auto")] = None,
    plan: Annotated[
        str, typer.Option("--plan", help="Where parts are meanwhile: auto, resident, model, group ...; see reelora plan.")
    ] = "auto",
    codec: Annotated[str, typer.Option("--codec", help="Of mp4: h264 or h265.")] = "auto",
    crf: Annotated[
        int | None, typer.Option("--crf", help="Quality: less is better and larger.", show_default="the codec's")
    ] = None,
    sheet: Annotated[Path | None, typer.Option("--sheet", metavar="FILE.png", help="A picture of all videos.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    number: Annotated[bool, typer.Option("--number", help="Take the next free name where a file exists.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Make only those that are not there yet.")] = False,
) -> None:
    """Make videos (or stills) of prompts, pictures or videos, with any number of adapters.

    Example: reelora generate "a red circle moves left on a grey background" -o circle.mp4
    """
    from reelora import recipes

    from .terminal import Terminal

    asked = {
        "steps": steps,
        "scheduler": scheduler,
        "guidance": guidance,
        "guidance_schedule": guidance_schedule,
        "guidance_exponent": guidance_exponent,
        "negative_prompt": negative_prompt,
        "num_frames": frames,
        "height": height,
        "width": width,
        "fit": fit,
        "video_strength": video_strength,
        "adapters_as": adapters_as,
        "sampling": sampling,
    }
    wishes = recipes.Wishes(
        prompts=tuple(prompts or ()),
        prompt_file=prompt_file,
        like=like,
        grid=tuple(grid or ()),
        adapters=tuple(adapter or ()),
        image=image,
        video=video,
        seed=seed,
        videos_per_prompt=videos_per_prompt,
        batch_size=batch_size,
        settings={name: value for name, value in asked.items() if value is not None},
    )
    place = recipes.Place(
        model=model,
        device=device or "auto",
        precision=recipes.check_precision(precision) if precision else None,
        sat_config=tuple(sat_config or ()),
        paths=read_role_paths(path),
        plan=plan,
    )
    saving = recipes.Saving(
        output=output,
        overwrite=overwrite,
        number=number,
        resume=resume,
        codec=recipes.check_codec(codec),
        crf="auto" if crf is None else crf,
        sheet=sheet,
    )
    with Terminal() as terminal:
        outcome = recipes.generate(wishes, place, saving, listener=terminal)
    if outcome.kept:
        print(f"{len(outcome.kept)} were there already.")
    print("\n".join(map(str, outcome.files)))
    if outcome.is_stopped:
        print("Stopped. The same command with --resume goes on.")
        raise typer.Exit(130)
