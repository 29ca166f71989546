"""The pocket model's own tokenizer: its words whole, all others in syllables and letters.

It is a plain ``T5Tokenizer``, so letters outside Latin become ``<unk>``, as they do in the published one.
"""

from itertools import product

from transformers import T5Tokenizer

from .clips import BACKGROUNDS, COLOURS, MOTIONS, SHAPES

__all__ = ["MAX_TOKENS", "build_tokenizer"]

MAX_TOKENS = 24
"""Pieces of a prompt, the closing ``</s>`` included; the longest caption of the little world has 11."""

_SPECIAL = ("<pad>", "</s>", "<unk>")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_OTHERS = _LETTERS.upper() + "0123456789.,;:!?'\"()-_<>&%+/#àáâäãåæçèéêëìíîïñòóôöõøùúûüýßœ"
_CONSONANTS = "bcdfghjklmnprstvwz"
_VOWELS = "aeiou"


def _pieces() -> list[tuple[str, float]]:
    """Pieces with their log probabilities; the cheapest split of a word wins, so a whole word beats syllables."""
    words = {"a", "A", "an", "the", "on", "and", "background", *SHAPES, *COLOURS, *BACKGROUNDS}
    words |= {word for motion in MOTIONS for word in motion.split()}
    syllables = ("".join(pair) for pair in product(_CONSONANTS, _VOWELS))
    table = [(piece, 0.0) for piece in _SPECIAL]
    table += [("▁", -3.0)]
    table += [(f"▁{word}", -2.0) for word in sorted(words)]
    table += [(syllable, -5.0) for syllable in syllables]
    table += [(letter, -4.0) for letter in _LETTERS + _OTHERS]
    return table


def build_tokenizer() -> T5Tokenizer:
    """A ``T5Tokenizer`` of a few hundred pieces; saves and loads like the published one."""
    return T5Tokenizer(vocab=_pieces(), extra_ids=0, model_max_length=MAX_TOKENS)
