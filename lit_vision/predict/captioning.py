"""Captions: inference network, and result lines, which are given only if the decoder is worth it.

A decoder that was trained on few pictures is often worse than a copy of the caption of the nearest training picture, so
each training measures both on its validation split by CIDEr-D, and a decoder that does not win is refused unless it is
asked for. B images, S tokens of a caption.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from lit_vision.errors import UsageError, UserError
from lit_vision.predict.inputs import InputBatch
from lit_vision.predict.predictions import Caption
from lit_vision.predict.writers import csv_line
from lit_vision.weights.model_metadata import CAPTION_SCORES, ModelMetadata

if TYPE_CHECKING:
    from lit_vision.data.captions import CaptionTokenizer

AUTO, DECODER = "auto", "decoder"  # values of --captions


class CaptionInference(nn.Module):
    """Normalized images (B, C, S, S) -> tokens (B, S) of captions, as floats, and mean log-probabilities (B,)."""

    outputs = ("tokens", "log_probability")

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.network = method

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs (see the class)."""
        found: tuple[Tensor, Tensor] = self.network.caption(images)
        return found


def check_captions(metadata: ModelMetadata, captions: str = AUTO) -> None:
    """Refuse a decoder whose CIDEr-D on the validation split of its training does not exceed the baseline's.

    Args:
        metadata: of a model for captioning.
        captions: "auto", or "decoder" to take the decoder whatever it reached.

    Raises:
        UserError: the decoder did not win, or no validation measured it. UsageError: another value of `captions`.
    """
    if captions not in (AUTO, DECODER):
        raise UsageError(f"--captions {captions!r}: is not {AUTO} or {DECODER}; choose one of these")
    if captions == DECODER:
        return
    scores = metadata.options.get(CAPTION_SCORES)
    if scores is None:
        raise UserError(
            "--captions: no validation compared this decoder with the nearest training image's caption; train with a "
            f"validation split, or give --captions {DECODER} to use it all the same"
        )
    decoder, neighbor = scores["decoder"]["cider"], scores["neighbor"]["cider"]
    if not decoder > neighbor:
        raise UserError(
            f"--captions: the decoder's CIDEr-D on {scores['images']} validation images is {decoder:.3f}, the nearest "
            f"training image's caption has {neighbor:.3f}; train it further, or give --captions {DECODER} to use it "
            "all the same"
        )


def _one_line(text: str) -> str:
    """Return text in one line and without control characters, which any bytes of a byte-level tokenizer may be."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


@lru_cache(maxsize=4)
def _tokenizer(text: str, context_length: int) -> CaptionTokenizer:
    from lit_vision.data.captions import CaptionTokenizer

    return CaptionTokenizer(text, context_length)


class CaptionLines:
    """One result line per image: its caption, and the mean log-probability of the caption's tokens.

    Args:
        metadata: of the model.
        file_format: "csv" (path, caption, log_probability) or "jsonl" (the same keys).
        captions: see `check_captions`.

    Raises:
        UserError: as `check_captions`, or the model has no tokenizer.
    """

    formats = ("csv", "jsonl")
    options: Mapping[str, Any] = {"captions": AUTO}  # flags of the command that apply to it, with defaults
    streams: tuple[str, ...] = ()
    finish = None
    note = ""

    def __init__(self, metadata: ModelMetadata, file_format: str, captions: str = AUTO, **_: Any) -> None:
        check_captions(metadata, captions)
        text = metadata.options.get("tokenizer_json")
        if text is None:
            raise UserError("the model has no tokenizer: it was not trained on captions of PairsDataModule")
        self.file_format = file_format
        self.tokenizer = _tokenizer(text, metadata.options["context_length"])

    def header(self) -> bytes:
        """Return the first bytes of the file."""
        return csv_line(["path", "caption", "log_probability"]) if self.file_format == "csv" else b""

    def predictions(self, batch: InputBatch, outputs: dict[str, np.ndarray]) -> list[Caption]:
        """Return the predictions of one batch, in its order."""
        texts = self.tokenizer.decode(outputs["tokens"].astype(np.int64).tolist())
        return [
            Caption(name, _one_line(text), float(log_p))
            for name, text, log_p in zip(batch.names, texts, outputs["log_probability"])
        ]

    def lines(self, batch: InputBatch, outputs: dict[str, np.ndarray]) -> bytes:
        """Return the lines of one batch, in its order."""
        lines = []
        for result in self.predictions(batch, outputs):
            log_p = round(result.log_probability, 6)
            if self.file_format == "csv":
                lines.append(csv_line([result.path, result.text, f"{log_p:.6f}"]))
            else:
                record = {"path": result.path, "caption": result.text, "log_probability": log_p}
                lines.append(json.dumps(record).encode() + b"\n")
        return b"".join(lines)
