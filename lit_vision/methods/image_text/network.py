"""Image tower and text tower with one space of vectors, without Lightning. Radford et al. 2021, Zhai et al. 2022, 2023.

CLIP (arXiv:2103.00020): softmax loss. LiT (arXiv:2111.07991): the image tower is locked. SigLIP (arXiv:2303.15343):
sigmoid loss. image_text.py beside this file trains the network.
B images and captions, E width of the common space, S tokens, N pairs of all processes.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_vision.data.captions import CaptionTokenizer
from lit_vision.errors import UserError
from lit_vision.methods.image_text.losses import clip_loss, siglip_loss
from lit_vision.methods.image_text.text_tower import POOLS, HuggingFaceText, TextTransformer
from lit_vision.methods.pixels import channel_values
from lit_vision.weights.pretrained import backbone_with_weights

# the modules in a checkpoint of this method
PARTS = frozenset({"backbone", "image_projection", "text", "text_projection", "similarity"})
TRAIN_VIEW = "train"
MONITOR = ("val/recall1", True)  # chooses best.ckpt: the metric, and whether more is better
# values of the hyper-parameters below that a checkpoint does not have, because it is older or only for use
DEFAULTS: dict[str, Any] = {"backbone": "vit_base_patch16_224", "backbone_args": None, "backbone_checkpoint": None}
DEFAULTS |= {"lock_image": False, "text_model": None, "lock_text": False, "vocab_size": 4096, "context_length": 64}
DEFAULTS |= {"text_width": 512, "text_depth": 12, "text_heads": 8, "text_causal": True, "text_pool": None}
DEFAULTS |= {"embed_width": 512, "loss": "softmax", "mean": None, "std": None}
DEFAULTS |= {"tokenizer_json": None, "text_config": None}

LOSSES = ("softmax", "sigmoid")
MAX_SCALE = 100.0  # of the softmax loss; arXiv:2103.00020, section 2.5
FIRST_LOG_SCALE, FIRST_BIAS = {"softmax": 2.6593, "sigmoid": math.log(10)}, -10.0  # exp(2.6593) = 1 / 0.07


class Similarity(nn.Module):
    """Learned scale of the cosine similarities, and with the sigmoid loss a learned bias, with the loss of pairs.

    Args:
        loss: softmax or sigmoid.
    """

    def __init__(self, loss: str) -> None:
        super().__init__()
        self.loss = loss
        self.log_scale = nn.Parameter(torch.tensor([FIRST_LOG_SCALE[loss]]))  # (1,): FSDP refuses scalars
        self.bias = nn.Parameter(torch.tensor([FIRST_BIAS])) if loss == "sigmoid" else None

    @property
    def scale(self) -> Tensor:
        """The factor of the cosine similarities, a scalar; at most MAX_SCALE with the softmax loss."""
        scale = self.log_scale.exp().squeeze()
        return scale.clamp(max=MAX_SCALE) if self.loss == "softmax" else scale

    def forward(self, images: Tensor, texts: Tensor, across_processes: bool = True) -> Tensor:
        """Return the loss of vectors (B, E) of images and of their texts; scalar, see losses.py.

        While training, a scale that the last step has moved above MAX_SCALE is first put back there.
        """
        if self.bias is not None:
            return siglip_loss(images, texts, self.scale, self.bias, across_processes)
        if self.training:
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(MAX_SCALE))
        return clip_loss(images, texts, self.log_scale.exp() if self.training else self.scale, across_processes)


class ImageTextNetwork(nn.Module):
    """Two towers, each with a linear projection without bias into the common space.

    Args:
        h: hyper-parameters of `lit_vision.methods.image_text.image_text.ImageText`, as its checkpoints hold them.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do. PartialMatchError (a UserError):
            `backbone_checkpoint` does not fit.
    """

    method_name, parts, train_view, monitor = "ImageText", PARTS, TRAIN_VIEW, MONITOR

    def __init__(self, h: Mapping[str, Any]) -> None:
        super().__init__()
        self.hparams: Any = {**h, **DEFAULTS, **h}  # in the order of h; a LightningModule has its own
        self.build(self.hparams)

    def build(self, h: Mapping[str, Any]) -> None:
        """Make and initialise the parts."""
        if h["loss"] not in LOSSES:
            raise UserError(f"model.loss: {h['loss']!r} is not one of {', '.join(LOSSES)}; choose one of these")
        if h["text_pool"] not in (None, *POOLS):
            raise UserError(
                f"model.text_pool: {h['text_pool']!r} is not one of {', '.join(POOLS)}; choose one of these"
            )
        if h["lock_text"] and h["text_model"] is None:
            raise UserError("model.lock_text: a text tower of our own has no weights to keep; name a text_model")
        start = h["backbone_checkpoint"]
        self.backbone, mean, std = backbone_with_weights(h["backbone"], h["backbone_args"] or {}, start)
        if h["text_model"] is None:
            width, depth, heads = h["text_width"], h["text_depth"], h["text_heads"]
            causal, pool = h["text_causal"], h["text_pool"] or "end"
            self.text: TextTransformer | HuggingFaceText = TextTransformer(
                h["vocab_size"], h["context_length"], width, depth, heads, causal, pool
            )
        else:
            self.text = HuggingFaceText(
                h["text_model"], h["text_config"], h["context_length"], h["text_pool"] or "mean"
            )
        self.image_projection = nn.Linear(self.backbone.width, h["embed_width"], bias=False)
        self.text_projection = nn.Linear(self.text.width, h["embed_width"], bias=False)
        for projection in (self.image_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        self.similarity = Similarity(h["loss"])
        self.backbone.requires_grad_(not h["lock_image"])
        self.text.requires_grad_(not h["lock_text"])
        channels = self.backbone.config["in_chans"]
        self.register_buffer("mean", torch.tensor(channel_values("mean", h["mean"], mean, channels)))
        self.register_buffer("std", torch.tensor(channel_values("std", h["std"], std, channels)))
        self.train()  # locked towers must be in evaluation mode from the start

    def forward(self, images: Tensor) -> Tensor:
        """Return unit vectors (B, E) of normalised images (B, C, H, W)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.hparams["lock_image"]):
            features = self.backbone(images)
        return F.normalize(self.image_projection(features), dim=-1)

    def encode_tokens(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return unit vectors (B, E) of captions: tokens (B, S) int64 and mask (B, S) bool, False for padding.

        A locked text tower's weights require no gradients, so that none are computed unless its input's are (prompts).
        """
        return F.normalize(self.text_projection(self.text(tokens, mask)), dim=-1)

    @cached_property
    def tokenizer(self) -> CaptionTokenizer:
        """The tokenizer that the text tower was trained with.

        Raises:
            UserError: the checkpoint has none, or `tokenizers` is not installed.
        """
        if self.hparams["tokenizer_json"] is None:
            raise UserError("the model has no tokenizer: it was trained on tokens of the user's own data module")
        return CaptionTokenizer(self.hparams["tokenizer_json"], self.hparams["context_length"])

    @property
    def context_length(self) -> int:
        """The most tokens of a text, start and end counted."""
        return int(self.hparams["context_length"])

    @property
    def token_embedding(self) -> nn.Module:
        """The module of the text tower that turns tokens into vectors, without positions."""
        return self.text.token_embedding

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return tokens and mask of texts, see `CaptionTokenizer.encode`.

        Raises:
            UserError: as `tokenizer`.
        """
        return self.tokenizer.encode(texts)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Return unit vectors (N, E) of texts, without gradients, `batch_size` at a time.

        Raises:
            UserError: as `tokenizer`.
        """
        device = self.mean.device
        parts = [self.mean.new_empty(0, self.hparams["embed_width"])]
        for start in range(0, len(texts), batch_size):
            tokens, mask = self.tokenizer.encode(texts[start : start + batch_size])
            parts.append(self.encode_tokens(tokens.to(device), mask.to(device)).to(self.mean.dtype))
        return torch.cat(parts)

    def train(self, mode: bool = True) -> "ImageTextNetwork":
        """Set training mode, except for locked towers: their batch-norm statistics are fixed, drop path is off."""
        super().train(mode)
        if self.hparams["lock_image"]:
            self.backbone.eval()
        if self.hparams["lock_text"]:
            self.text.eval()
        return self
