"""Models of open_clip by name and weights: `open_clip:ViT-B-32/laion2b_s34b_b79k`, or `open_clip:ViT-B-32/FILE`.

B images, E width of the space that images and texts share.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_vision.data.views.image_size import plain_size
from lit_vision.errors import UserError
from lit_vision.io.hashing import state_dict_sha256
from lit_vision.weights.model_metadata import SHARED_SPACE, ModelMetadata
from lit_vision.weights.protected_files import refuse_unsigned

PREFIX = "open_clip:"


def is_open_clip_name(source: str | os.PathLike[str]) -> bool:
    """Return True for a source that names a model of open_clip."""
    return os.fspath(source).startswith(PREFIX)


class OpenClipTowers(nn.Module):
    """Normalized images (B, 3, S, S) -> unit vectors (B, E), and texts to vectors, by a model of open_clip.

    It has the parts that zero-shot classification takes of ImageText's network: `backbone`, `image_projection` (nothing
    here, the image tower ends with its own), `similarity.scale` and `encode_texts`; and those of prompt learning:
    `context_length`, `token_embedding`, `tokenize` and `encode_tokens`.
    """

    outputs = ("features",)

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.image_projection = model, nn.Identity()
        self._tokenizer = tokenizer

    @property
    def backbone(self) -> nn.Module:
        """The image tower with its projection."""
        return self.model.visual

    @property
    def similarity(self) -> SimpleNamespace:
        """Its `scale` is the factor of cosine similarities, a scalar."""
        return SimpleNamespace(scale=self.model.logit_scale.exp().squeeze())

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Return the outputs (see the class)."""
        return (F.normalize(self.model.visual(images), dim=-1),)

    @cached_property
    def _empty(self) -> Tensor:
        """The tokens of the empty text, (S,), of which the last is padding."""
        tokens: Tensor = self._tokenizer([""])[0]
        return tokens

    @property
    def context_length(self) -> int:
        """The number of tokens of every text, padding counted."""
        return len(self._empty)

    @property
    def token_embedding(self) -> nn.Module:
        """The module of the text tower that turns tokens into vectors, without positions.

        Raises:
            UserError: a text tower of transformers.
        """
        found = getattr(getattr(self.model, "text", self.model), "token_embedding", None)
        if found is None:
            raise UserError("prompt learning: not for text towers of transformers within open_clip; take another model")
        embedding: nn.Module = found
        return embedding

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return tokens (N, S) of texts, cut after the longest, and (N, S) bool, False for padding."""
        tokens = self._tokenizer(list(texts))
        mask = (tokens != self._empty[-1]).int().flip(1).cummax(1).values.flip(1).bool()  # padding stands at the end
        longest = int(mask.sum(1).max())
        return tokens[:, :longest], mask[:, :longest]

    def encode_tokens(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return unit vectors (N, E) of tokens and mask, see `tokenize`."""
        pad = int(self._empty[-1])
        tokens = F.pad(tokens.masked_fill(~mask, pad), (0, self.context_length - tokens.shape[1]), value=pad)
        return F.normalize(self.model.encode_text(tokens).float(), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Return unit vectors (N, E) of texts."""
        device = self.model.logit_scale.device
        parts = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
        vectors = [self.model.encode_text(self._tokenizer(list(part)).to(device)).float() for part in parts]
        return F.normalize(torch.cat(vectors), dim=-1)


def load_open_clip(source: str) -> tuple[OpenClipTowers, ModelMetadata]:
    """Return a model of open_clip with weights, in evaluation mode on the CPU, and its metadata.

    Images get this project's evaluation view with open_clip's size and pixel statistics: shorter side scaled, middle
    cropped. open_clip interpolates in another way, and squashes the images of some models (SigLIP's).

    Args:
        source: `open_clip:MODEL/WEIGHTS`, names that open_clip.list_pretrained() gives, or a file in place of WEIGHTS.

    Raises:
        UserError: open_clip is not installed, no such model or weights, weights that cannot be fetched, or a file that
            does not fit.
    """
    refuse_unsigned(source)
    name, _, weights = source.removeprefix(PREFIX).partition("/")
    try:
        import open_clip
    except ImportError as error:
        raise UserError(f"{source}: needs the package open_clip_torch; pip install 'lit-vision[words]'") from error
    known = open_clip.list_models()
    if name not in known:
        close = ", ".join(difflib.get_close_matches(name, known, 4, 0.3)) or "one of open_clip.list_models()"
        raise UserError(f"{source}: open_clip has no model {name!r}; choose {close}")
    file = next((path for path in (weights, f"/{weights}") if os.path.isfile(path)), None)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if file is None and weights not in tags:
        raise UserError(
            f"{source}: {weights!r} is neither a file nor weights of {name}; give a file or one of "
            f"{', '.join(tags) or '(it has none)'}"
        )
    try:
        model = open_clip.create_model(name, pretrained=file or weights, weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        advice = "take another file" if file else "connect once, or give a file"
        raise UserError(f"{source}: its weights cannot be loaded ({why}); {advice}") from error
    except Exception as error:  # unpickling and safetensors have exceptions of their own
        raise UserError(f"{source}: its weights cannot be read ({type(error).__name__}); take another file") from error
    towers = OpenClipTowers(model.eval().requires_grad_(False), open_clip.get_tokenizer(name)).eval()
    config = open_clip.get_model_preprocess_cfg(model)
    sha256 = state_dict_sha256(model.state_dict())
    return towers, ModelMetadata(
        task="features",
        size=plain_size(config["size"]),
        mean=[float(v) for v in config["mean"]],
        std=[float(v) for v in config["std"]],
        outputs=list(towers.outputs),
        weights=sha256,
        features=sha256,
        options={"space": SHARED_SPACE},
    )
