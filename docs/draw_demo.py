"""Takes the README's picture out of a demo's folder: ``reelora demo --output demo``, then ``python docs/draw_demo.py demo``."""

import sys
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from reelora.data import read_clip
from reelora.generate import Clip, to_png_bytes

PICTURES = Path(__file__).parent / "pictures"
COLUMNS, ROWS, SIDE = 5, 4, 128
SHOWN, FRAME, GAP = 8, 8, 6


def main(demo: Path) -> None:
    """The first eight prompts before training over the same after it, in the middle of each video."""
    before, after = (_shown(demo / f"{name}.mp4") for name in ("before", "after"))
    gap = torch.full((GAP, before.shape[1], 3), 255, dtype=torch.uint8)
    picture = torch.cat([before, gap, after])
    (PICTURES / "demo.png").write_bytes(to_png_bytes(Clip(frames=picture[None], fps=1).frames[0].numpy()))


def _shown(film: Path) -> Tensor:
    frames = read_clip(film, num_frames=17, height=ROWS * SIDE, width=COLUMNS * SIDE, fps=8)[0]
    cells = rearrange(frames[FRAME], "(y h) (x w) c -> (y x) h w c", y=ROWS, x=COLUMNS)
    return rearrange(cells[:SHOWN], "n h w c -> h (n w) c")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
