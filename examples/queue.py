"""A session that stays open for a queue of videos: ``python examples/queue.py MODEL ADAPTER FOLDER`` (MODEL may be pocket).

Prompts are encoded once, equal adapter sets run together, and every video is as it would be alone.
"""

import sys
from pathlib import Path

from reelora import Session
from reelora.pocket import MODEL

PROMPTS = ("a blue twinkle stands still on a white background", "a red circle moves left on a grey background")
STRENGTHS = (0.0, 0.5, 1.0)


def main(model: str, adapter: str, folder: str, *, steps: int = 20) -> None:
    """Make every prompt at every strength."""
    session = Session(MODEL if model == "pocket" else model)
    jobs = [
        session.job(prompt, seed=3, adapters={Path(adapter): strength} if strength else {}, steps=steps)
        for prompt in PROMPTS
        for strength in STRENGTHS
    ]
    for index, clip in session.run(jobs):
        [path] = clip.save(Path(folder) / f"{index}.mp4", overwrite=True)
        strengths = [use["strength"] for use in clip.metadata["adapters"]]
        print(f"{path}: {clip.metadata['prompt']}, strengths {strengths}")


if __name__ == "__main__":
    main(*sys.argv[1:])
