"""Takes the pictures of the guide to training out of a run's folder: ``python docs/draw_training.py RUN``.

The run is the demo's, half as long and with previews: ``reelora demo --output demo``, then ``reelora train demo/config.toml
--output RUN --steps 200 --set loop.evaluate_every=20 --set preview.every=100`` and two prompts in ``preview.prompts``.
"""

import re
import sys
from pathlib import Path

from torch import Tensor

from reelora.data import read_clip
from reelora.generate import Clip, contact_sheet, to_png_bytes

PICTURES = Path(__file__).parent / "pictures"


def main(run: Path) -> None:
    """Write the first two plots of the report, and all previews side by side: a row per prompt, the base on the left."""
    plots = re.findall(r"<svg.*?</svg>", (run / "report.html").read_text(encoding="utf-8"), re.DOTALL)
    for name, plot in zip(("train-gain", "train-loss"), plots, strict=False):
        (PICTURES / f"{name}.svg").write_text(plot + "\n", encoding="utf-8")
    films = sorted((run / "previews").glob("*.mp4"), key=lambda path: path.stem.split("-")[::-1])
    steps = [int(film.stem.split("-")[1]) for film in films]
    clips = [_enlarged(read_clip(film, num_frames=17, height=64, width=64, fps=8)[0]) for film in films]
    labels = [f"step {step}" if step else "base" for step in steps]
    sheet = contact_sheet(clips, labels, columns=len(set(steps)), frames=3)
    (PICTURES / "train-previews.png").write_bytes(to_png_bytes(sheet))


def _enlarged(frames: Tensor) -> Clip:
    return Clip(frames=frames.repeat_interleave(2, 1).repeat_interleave(2, 2), fps=8)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
