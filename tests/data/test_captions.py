"""Tokens of captions: a trained tokenizer and a text model's, rows of different lengths, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_vision.data.captions import CaptionTokenizer, EncodedCaptions, read_tokenizer, train_tokenizer
from lit_vision.errors import UsageError, UserError

CAPTIONS = ["a red shoe", "a blue shoe", "two red birds on a roof", "Größe 38"]


def test_a_trained_tokenizer_is_a_function_of_the_captions_and_loses_nothing() -> None:
    tokenizer = train_tokenizer(CAPTIONS, 300, 32)
    assert tokenizer.json == train_tokenizer(CAPTIONS, 300, 32).json
    assert (tokenizer.pad, tokenizer.start, tokenizer.end) == (0, 1, 2)
    assert tokenizer.vocab_size <= 300
    tokens, mask = tokenizer.encode([*CAPTIONS, "never seen: \N{PILE OF POO} x"])
    assert tokens.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert tokens.shape == mask.shape
    assert (tokens[:, 0] == 1).all()
    lengths = mask.sum(1)
    assert (tokens[torch.arange(5), lengths - 1] == 2).all()  # the end stands last, padding behind it
    assert (tokens[~mask] == 0).all()
    assert mask.int().diff(dim=1).max() <= 0
    assert tokenizer.decode(tokens) == [*(text.lower() for text in CAPTIONS), "never seen: \N{PILE OF POO} x"]
    again = CaptionTokenizer(tokenizer.json, 32)
    assert torch.equal(again.encode(CAPTIONS)[0], tokenizer.encode(CAPTIONS)[0])


def test_long_captions_are_cut_and_keep_their_end() -> None:
    tokens, mask = train_tokenizer(CAPTIONS, 260, 6).encode(["a very long caption indeed", "a"])
    assert tokens.shape == (2, 6)
    assert tokens[0, 5] == 2
    assert mask[0].all()


def test_a_text_models_tokenizer_pads_with_its_own_token(tmp_path: Path) -> None:
    """As BERT's: [PAD] is not 0, and the file asks for rows of one fixed length, which is not followed."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "red": 3, "shoe": 4, "[PAD]": 5}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    words.enable_padding(pad_id=5, pad_token="[PAD]", length=128)
    (tmp_path / "tokenizer.json").write_text(words.to_str())
    tokenizer = read_tokenizer(tmp_path)
    tokens, mask = tokenizer.encode(["red shoe", "hat"])
    assert tokens.tolist() == [[1, 3, 4, 2], [1, 0, 2, 5]]
    assert mask.sum(1).tolist() == [4, 3]
    assert (tokenizer.start, tokenizer.end, tokenizer.vocab_size) == (1, 2, 6)


def test_encoded_captions_equal_encoding_them_one_by_one() -> None:
    tokenizer = train_tokenizer(CAPTIONS, 280)
    captions = [["a red shoe", "a shoe"], ["two birds"], ["x", "y y y y", "z"]]
    encoded = EncodedCaptions(captions, tokenizer)
    assert [encoded.count(i) for i in range(3)] == [2, 1, 3]
    tokens, mask = encoded.batch([2, 0, 1], [1, 1, 0])
    wanted, wanted_mask = tokenizer.encode(["y y y y", "a shoe", "two birds"])
    assert torch.equal(tokens, wanted)
    assert torch.equal(mask, wanted_mask)
    assert np.array_equal(encoded.batch([0], [0])[0], tokenizer.encode(["a red shoe"])[0])


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", b"{", json.dumps({"model": {"type": "BPE"}}).encode()])
def test_what_is_no_tokenizer_is_refused_by_its_name(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path / "tokenizer.json" if content is None else tmp_path)


def test_numbers_that_cannot_work_are_refused() -> None:
    with pytest.raises(UsageError, match="vocab_size"):
        train_tokenizer(CAPTIONS, 100)
    with pytest.raises(UsageError, match="context_length"):
        train_tokenizer(CAPTIONS, 300, 2)
