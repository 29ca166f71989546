"""What the catalog says of the pocket model is what it was made and measured with."""

from reelora.catalog import MODELS
from reelora.pocket import FPS, NUM_FRAMES, SIZE
from reelora.pocket.evaluate import GUIDANCE, STEPS
from reelora.pocket.tokenizer import MAX_TOKENS


def test_the_row_agrees_with_the_maker():
    row = next(row for row in MODELS if row.name == "pocket")
    assert (row.default_frames, row.default_height, row.default_width, row.fps) == (NUM_FRAMES, SIZE, SIZE, FPS)
    assert (row.default_steps, row.default_guidance, row.num_text_tokens) == (STEPS, GUIDANCE, MAX_TOKENS)
