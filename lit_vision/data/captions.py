"""Captions as tokens: a tokenizer trained on captions, or a text model's own; the captions of a split in two arrays.

N captions, S tokens. The package `tokenizers` (extra `words`) is imported when it is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lit_vision.errors import UsageError, UserError

SPECIAL_TOKENS = ("<pad>", "<start>", "<end>")  # of a trained tokenizer, numbers 0 to 2
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)  # every byte is a token


class Tokenizer(Protocol):
    """Anything that turns captions into tokens."""

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the tokens of N captions, (N, S) int64, and (N, S) bool, False for padding at the end of a row."""


class CaptionTokenizer:
    """Tokenizer from the text of a tokenizer.json, as `train_tokenizer` and Hugging Face's text models have it.

    Attributes:
        json: the text that it was made from.
        context_length: tokens of a caption, start and end included; longer ones are cut, the end stays.
        vocab_size: number of tokens.
        pad, start, end: numbers of these tokens; start and end are -1 in a tokenizer that adds none.

    Args:
        json: the text.
        context_length: at least 3.

    Raises:
        UserError: `tokenizers` is not installed, or the text is no tokenizer.
        UsageError: the context length is too small.
    """

    def __init__(self, json: str, context_length: int = 64):
        if context_length < 3:
            raise UsageError(f"data.context_length: {context_length}; give 3 or more tokens")
        self.json, self.context_length = json, context_length
        try:
            tokenizer = _package().Tokenizer.from_str(json)
        except UserError:
            raise
        except BaseException as error:  # the package raises Exception itself; panics of its Rust code are no Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise
            raise UserError(f"tokenizer: is not the content of a tokenizer.json ({error}); give another") from None
        padding = tokenizer.padding or {}
        named = (tokenizer.token_to_id(name) for name in ("<pad>", "[PAD]"))
        self.pad: int = padding.get("pad_id", next((number for number in named if number is not None), 0))
        tokenizer.no_padding()
        tokenizer.enable_truncation(context_length)
        self.vocab_size: int = tokenizer.get_vocab_size()
        empty = tokenizer.encode("").ids
        self.start: int = empty[0] if len(empty) >= 2 else -1
        self.end: int = empty[-1] if len(empty) >= 2 else -1
        self._tokenizer = tokenizer

    def encode_rows(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each caption, without padding.

        Raises:
            UserError: the tokenizer has no token for a character, not even an unknown one.
        """
        try:
            return [encoding.ids for encoding in self._tokenizer.encode_batch(list(captions))]
        except Exception as error:  # the package raises Exception itself
            raise UserError(f"tokenizer: cannot encode these captions ({error}); give another") from None

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the tokens of N captions, (N, S) int64, and (N, S) bool, False for padding at the end of a row.

        S is the number of tokens of the longest of them.
        """
        rows = [np.array(row, np.int64) for row in self.encode_rows(captions)]
        return pad_rows(rows, self.pad)

    def decode(self, tokens: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each row of tokens up to its end, without start, end and padding."""
        texts = []
        for row in tokens.tolist() if isinstance(tokens, Tensor) else tokens:
            row = list(row)[1:] if len(row) and row[0] == self.start else list(row)
            row = row[: row.index(self.end)] if self.end in row else row
            texts.append(self._tokenizer.decode(row, skip_special_tokens=True).strip())
        return texts


def train_tokenizer(captions: Iterable[str], vocab_size: int = 4096, context_length: int = 64) -> CaptionTokenizer:
    """Train a byte-level BPE (lower case, as CLIP's) on captions; the same captions give the same tokenizer.

    A caption is `<start> tokens <end>`. Every text has tokens, since each byte is one.

    Args:
        captions: the texts.
        vocab_size: most tokens, at least SMALLEST_VOCABULARY; few captions give fewer.
        context_length: see `CaptionTokenizer`.

    Raises:
        UserError: `tokenizers` is not installed.
        UsageError: a number is too small.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UsageError(f"data.vocab_size: {vocab_size}; give {SMALLEST_VOCABULARY} or more, each byte is a token")
    package = _package()
    tokenizer = package.Tokenizer(package.models.BPE())
    tokenizer.normalizer = package.normalizers.Sequence([package.normalizers.NFC(), package.normalizers.Lowercase()])
    tokenizer.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = package.decoders.ByteLevel()
    trainer = package.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((" ".join(caption.split()) for caption in captions), trainer)
    pad, start, end = SPECIAL_TOKENS
    tokenizer.post_processor = package.processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, 1), (end, 2)]
    )
    tokenizer.enable_padding(pad_id=0, pad_token=pad)
    return CaptionTokenizer(tokenizer.to_str(), context_length)


def read_tokenizer(path: str | Path, context_length: int = 64) -> CaptionTokenizer:
    """Read a tokenizer.json, or the one in the folder of a text model.

    Raises:
        UserError: there is none, or it is damaged; names the file.
    """
    file = Path(path).expanduser()
    file = file / "tokenizer.json" if file.is_dir() else file
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"data.tokenizer: {file}: {error.strerror}; name a tokenizer.json, or a text model's folder"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"data.tokenizer: {file}: is not UTF-8 text; name a tokenizer.json") from None
    try:
        return CaptionTokenizer(text, context_length)
    except UsageError:
        raise
    except UserError as error:
        raise UserError(f"data.tokenizer: {file}: {error}") from None


def pad_rows(rows: Sequence[np.ndarray], pad: int) -> tuple[Tensor, Tensor]:
    """Return rows of tokens of different lengths as (N, S) int64 and (N, S) bool, see `Tokenizer.encode`."""
    longest = max((len(row) for row in rows), default=0)
    tokens, mask = np.full((len(rows), longest), pad, np.int64), np.zeros((len(rows), longest), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
    return torch.from_numpy(tokens), torch.from_numpy(mask)


class EncodedCaptions:
    """Tokens of the captions of N images, each with one caption or more.

    They are encoded once, before workers start: the package's threads do not survive a fork, and forked workers share
    arrays.

    Args:
        captions: of each image, at least one.
        tokenizer: a `CaptionTokenizer`.
    """

    def __init__(self, captions: Sequence[Sequence[str]], tokenizer: CaptionTokenizer):
        rows = tokenizer.encode_rows([text for texts in captions for text in texts])
        self.pad = tokenizer.pad
        self._firsts = np.cumsum([0, *map(len, captions)])  # (N + 1,) of each image, its first caption
        self._ends = np.cumsum([0, *map(len, rows)])
        self._tokens = np.fromiter((token for row in rows for token in row), np.int32, int(self._ends[-1]))

    def count(self, image: int) -> int:
        """Return the number of captions of an image."""
        return int(self._firsts[image + 1] - self._firsts[image])

    def batch(self, images: Sequence[int], numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return tokens and mask, as `Tokenizer.encode`, of one caption of each of some images, by its number."""
        rows = []
        for image, number in zip(images, numbers):
            caption = self._firsts[image] + number
            rows.append(self._tokens[self._ends[caption] : self._ends[caption + 1]])
        return pad_rows(rows, self.pad)


def _package() -> Any:
    """Import the package `tokenizers`; UserError if it is not installed."""
    # without it the package warns in each worker that is forked after it was used
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.normalizers
        import tokenizers.pre_tokenizers
        import tokenizers.processors
        import tokenizers.trainers
    except ImportError:
        raise UserError("captions need the package tokenizers; pip install 'lit-vision[words]'") from None
    return tokenizers
