"""Trained rows of the table of pictures and words: their towers, settings and lengths, and what they cost.

Every row trains `ImageText` with CLIP's loss. A locked tower's vectors are computed once and given to the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from frozen_sets import LITE0
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lit_vision.data.batch import normalize
from lit_vision.data.captions import CaptionTokenizer, read_tokenizer, train_tokenizer
from lit_vision.data.views.keyed_rng import derive_seed, temporary_seed
from lit_vision.methods.image_text.image_text import ImageText
from lit_vision.methods.simclr.simclr import SimCLR
from studies.words_sets import SIDE, TEXT_LENGTH, WordSet, public_weights, text_encoder

if TYPE_CHECKING:
    from pathlib import Path

EMBED_WIDTH = 256
VOCABULARY = 2048
OWN_TEXT: dict[str, Any] = {"vocab_size": VOCABULARY, "text_width": 192, "text_depth": 2, "text_heads": 3}
CNN: dict[str, Any] = {"stem_type": "deep", "stem_width": 8, "layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}
SIMCLR: dict[str, Any] = {
    "temperature": 0.2,
    "projection_width": 64,
    "projection_batch_norm": True,
    "optimizer": "adamw",
    "base_lr": None,
    "lr": 2e-3,
    "weight_decay": 1e-4,
    "warmup_epochs": 0.0,
}
SIMCLR_VIEWS: dict[str, Any] = {"crop_scale": [0.3, 1.0]}
VIEWS: dict[str, Any] = {"crop_scale": [0.8, 1.0], "flip": 0.0}  # of what trains on captions, which name left and right


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        init: the image tower: lite0 (224 pixels), lite0-96, scratch-cnn or simclr.
        protocol: its name in the results.
        text: the text tower: "frozen" MiniLM, "minilm" trained, or "own" from scratch.
        steps: numbers of steps to choose from on the validation pictures.
        batch: pairs a step.
        lr: learning rate.
        splits: of each set, so many.
        trains_image: the image tower trains too.
        from_frozen: the projections begin as those of the frozen row of the same image tower.
        by_picture: the splits by picture are measured as well.
        pretrain_steps: of SimCLR on the training pictures of the split.
        pretrain_batch: pictures a step of it.
    """

    init: str
    protocol: str
    text: str
    steps: tuple[int, ...]
    batch: int
    lr: float
    splits: dict[str, int]
    trains_image: bool = False
    from_frozen: bool = False
    by_picture: bool = False
    pretrain_steps: int = 0
    pretrain_batch: int = 256

    @property
    def training(self) -> list[object]:
        """All that a training depends on."""
        pretraining = [self.pretrain_steps, self.pretrain_batch] if self.pretrain_steps else []
        return [
            self.init,
            self.text,
            self.steps,
            self.batch,
            self.lr,
            self.trains_image,
            self.from_frozen,
            *pretraining,
        ]


FIVE = {"emoji": 5, "clipart": 5}
FEWER = {"emoji": 5, "clipart": 3}  # three splits of the clipart where a training takes minutes
ROWS = (
    Row("lite0", "frozen", "frozen", (40, 120), 256, 1e-3, FIVE, by_picture=True),
    Row("lite0-96", "frozen", "frozen", (40, 120), 256, 1e-3, FIVE),
    Row("lite0", "locked, own text tower", "own", (40,), 128, 1e-3, FEWER),
    Row("lite0", "locked, MiniLM trained", "minilm", (16,), 64, 5e-5, FEWER, from_frozen=True),
    Row("lite0-96", "trained", "frozen", (24,), 64, 2e-4, FEWER, trains_image=True, from_frozen=True),
    Row("scratch-cnn", "trained", "frozen", (100,), 64, 2e-3, FEWER, trains_image=True),
    Row("simclr", "trained", "frozen", (50,), 64, 1e-3, FEWER, trains_image=True, pretrain_steps=16),
)


class Given(nn.Module):
    """Tower whose vectors were computed beforehand: it returns what it is given."""

    config = {"in_chans": 3}

    def forward(self, vectors: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the vectors."""
        return vectors


class GivenImageText(ImageText):
    """ImageText that also takes vectors of locked towers, float (B, 1, D) as images and (B, E) as tokens."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalize pixels; vectors stay as they are."""
        images = batch["images"]
        return {**batch, "images": normalize(images, self.mean, self.std) if images.dtype == torch.uint8 else images}


def build(row: Row, seed: int, weights: Path | None = None, start: ImageText | None = None) -> GivenImageText:
    """Return a row's model as its training begins.

    Args:
        row: of the table.
        seed: of random weights.
        weights: of the image tower; None: random, or not needed.
        start: model whose projections and scale it begins with.
    """
    public = row.init.startswith("lite0")
    options: dict[str, Any] = {"backbone": LITE0} if public else {"backbone": "resnet18", "backbone_args": CNN}
    if row.text == "minilm":
        options |= {"text_model": str(text_encoder())}
    else:  # a frozen one is replaced below
        options |= OWN_TEXT if row.text == "own" else {"text_width": 384, "text_heads": 6, "text_depth": 0}
    if not weights:
        options |= {"mean": [0.5] * 3, "std": [0.5 if public else 0.25] * 3}
    with temporary_seed(derive_seed(seed, 1)):
        module = GivenImageText(
            backbone_checkpoint=str(weights) if weights else None,
            lock_image=not row.trains_image,
            context_length=TEXT_LENGTH,
            embed_width=EMBED_WIDTH,
            lr=row.lr,
            warmup_epochs=0.0,
            **options,
        )
    if start is not None:
        for name in ("image_projection", "text_projection", "similarity"):
            getattr(module, name).load_state_dict(getattr(start, name).state_dict())
    if not row.trains_image:
        module.backbone = Given()
    if row.text == "frozen":
        module.text = Given()
    for part in module.backbone.modules() if public else ():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()  # small batches would replace ImageNet's statistics; the Trainer leaves the mode as it is
    return module.to(memory_format=torch.channels_last)  # type: ignore[return-value]


def image_weights(row: Row) -> Path | None:
    """Return the file that a row's image tower begins with if it trains; None: random, or SimCLR's of each split."""
    return public_weights() if row.trains_image and row.init.startswith("lite0") else None


def pretraining(seed: int) -> SimCLR:
    """Return SimCLR as its training begins."""
    with temporary_seed(derive_seed(seed, 0)):
        method = SimCLR(backbone="resnet18", backbone_args=CNN, mean=[0.5] * 3, std=[0.25] * 3, **SIMCLR)
    return method.to(memory_format=torch.channels_last)  # type: ignore[return-value]


def tokenizer(row: Row, words: WordSet, rows: np.ndarray) -> CaptionTokenizer | None:
    """Return the tokenizer of a row's text tower: MiniLM's, or one trained on the captions of some pictures."""
    if row.text == "minilm":
        return read_tokenizer(text_encoder(), TEXT_LENGTH)
    if row.text == "own":
        return train_tokenizer([text for i in rows for text in words.captions[i]], VOCABULARY, TEXT_LENGTH)
    return None


def multiply_adds(row: Row, tokens: int = 8) -> tuple[int, int]:
    """Return the multiply-adds of training on one pair, and of pre-training on one picture; see `count`.

    Args:
        row: of the table.
        tokens: of a caption.
    """
    module = build(row, 0)
    images = (
        torch.zeros(8, 1, 3, SIDE, SIDE) if row.trains_image else torch.zeros(8, 1, module.image_projection.in_features)
    )
    texts = torch.ones(8, 384) if row.text == "frozen" else torch.ones(8, tokens, dtype=torch.int64)
    batch: Any = {"images": images, "tokens": texts, "token_mask": torch.ones_like(texts, dtype=torch.bool)}
    pair = count(lambda: module.encode_pairs(batch)) // 8
    if not row.pretrain_steps:
        return pair, 0
    method: Any = pretraining(0)
    method.log = method.log_dict = lambda *args, **kwargs: None
    batch = {"images": images.expand(-1, 2, -1, -1, -1), "label": torch.zeros(8), "key": torch.zeros(8, 3)}
    return pair, count(lambda: method.training_step(batch, 0)) // 8


def count(forward: Any) -> int:
    """Count the multiply-adds of convolutions and matrix products of a step: three times its forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return round(3 * counter.get_total_flops() / 2)  # two operations a multiply-add
