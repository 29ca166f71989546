"""Makes ``tests/golden/cache/``: a film, a picture, and what this code stores of them and of their captions.

python tests/golden/make_cache.py     after _CODE_VERSION of src/reelora/data/entries.py was raised
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

FOLDER = Path(__file__).parent / "cache"


def draw(index: int) -> np.ndarray:
    """Fine stripes that wander, and a square that goes its way: what is scaled, cropped or timed otherwise looks otherwise."""
    rows, columns = np.mgrid[:72, :104]
    stripes = 127 + 100 * np.sin((columns + 2 * index) / 2.5)
    picture = np.stack([stripes, 2.4 * columns, 3 * rows], axis=-1)
    picture[20 + index : 36 + index, 3 * index : 3 * index + 16] = (240, 40, 40)
    return picture.clip(0, 255).astype(np.uint8)


def main() -> None:
    from films import write_film
    from golden_cache import CODE_VERSION, stored

    from reelora.tensorio import write_tensors

    clips = FOLDER / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    if not (clips / "film.mp4").exists():
        write_film(clips / "film.mp4", [draw(index) for index in range(30)], fps=12.5)
        Image.fromarray(draw(3)).save(clips / "picture.png")
        (clips / "film.txt").write_text("a red square moves right")
        (clips / "picture.txt").write_text("a red square")
    with TemporaryDirectory() as scratch:
        entries = stored(clips, Path(scratch))
    write_tensors(FOLDER / "entries.safetensors", entries, metadata={"code_version": str(CODE_VERSION)})


if __name__ == "__main__":
    main()
