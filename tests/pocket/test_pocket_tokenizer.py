"""The pocket model's own pieces."""

import pytest

from reelora.pocket.tokenizer import MAX_TOKENS, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_it_has_a_few_hundred_pieces(tokenizer):
    assert 200 < len(tokenizer) < 500


def test_words_of_the_little_world_are_whole(tokenizer):
    pieces = tokenizer.tokenize("a red circle moves left on a grey background")
    assert pieces == ["▁a", "▁red", "▁circle", "▁moves", "▁left", "▁on", "▁a", "▁grey", "▁background"]


@pytest.mark.parametrize("word", ["twinkle", "Zebra-7", "café", "sks"])
def test_unknown_words_survive(tokenizer, word):
    ids = tokenizer(word).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == word


def test_the_longest_caption_with_a_new_word_fits(tokenizer):
    assert len(tokenizer("a yellow twinklestar stands still on a brown background").input_ids) <= MAX_TOKENS


def test_it_loads_from_its_folder_as_it_was(tokenizer, tmp_path):
    from transformers import T5Tokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = T5Tokenizer.from_pretrained(tmp_path)
    text = "a pink twinkle shrinks on a white background"
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert len(loaded) == len(tokenizer)
