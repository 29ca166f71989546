"""One loaded model, one adapter, switched live: ``python examples/switch_live.py demo/adapter.safetensors switching.png``.

Writes one picture with frames for every state of the rack, all of the same prompt and seed. Nothing is loaded between them.
"""

import sys
from collections.abc import Callable, Mapping

import torch
from diffusers import CogVideoXPipeline
from PIL import Image, ImageDraw

from reelora import Rack
from reelora.pocket import MODEL

PROMPT = "a blue twinkle stands still on a white background"
SHOWN = (0, 4, 8)
LABEL, GAP = 16, 4
STATES: Mapping[str, Callable[[Rack], object]] = {
    "nothing acts": lambda rack: rack.activate({}),
    "strength 0.5": lambda rack: rack.activate({"star": 0.5}),
    "strength 1, as trained": lambda rack: rack.activate({"star": 1.0}),
    "blocks 0 to 2 only": lambda rack: rack.activate({"star": {"transformer_blocks.[0-2].*": 1.0, "*": 0.0}}),
    "strength 1, fused": lambda rack: (rack.activate({"star": 1.0}), rack.fuse()),
    "restored, nothing acts": lambda rack: (rack.restore(), rack.activate({})),
}


def main(adapter: str, output: str, *, steps: int = 50) -> None:
    """Go through all states and draw what each makes."""
    pipe = CogVideoXPipeline.from_pretrained(MODEL, dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    rack = Rack(pipe)
    rack.load("star", adapter)
    strips = []
    for change in STATES.values():
        change(rack)
        print(rack.state, end="\n\n")
        strips.append(strip(pipe, steps))
    draw_all(strips).save(output)


def strip(pipe: CogVideoXPipeline, steps: int) -> Image.Image:
    """Three frames of the video that the pipeline makes now."""
    video = pipe(
        PROMPT,
        num_inference_steps=steps,
        guidance_scale=4,
        max_sequence_length=24,
        generator=torch.Generator().manual_seed(1),
    ).frames[0]
    width, height = video[0].size
    shown = Image.new("RGB", (len(SHOWN) * (width + GAP), height), "white")
    for place, number in enumerate(SHOWN):
        shown.paste(video[number], (place * (width + GAP), 0))
    return shown


def draw_all(strips: list[Image.Image]) -> Image.Image:
    """Strips under their labels, three abreast."""
    width, height = strips[0].width + 4 * GAP, strips[0].height + LABEL + GAP
    sheet = Image.new("RGB", (3 * width, -(-len(strips) // 3) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (label, shown) in enumerate(zip(STATES, strips, strict=True)):
        row, column = divmod(place, 3)
        draw.text((column * width, row * height), label, fill="black")
        sheet.paste(shown, (column * width, row * height + LABEL))
    return sheet


if __name__ == "__main__":
    main(*sys.argv[1:3])
