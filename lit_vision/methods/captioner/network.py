"""Image captioning without Lightning: a backbone, its features as the prefix of a caption, and a decoder of its words.

captioner.py beside this file trains the network; decoder.py has the decoder and its beam search.
B images, P prefix tokens of an image, S tokens of a caption, W width of the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_vision.backbones.backbone import Backbone
from lit_vision.backbones.pyramid import freeze_unused, map_shapes
from lit_vision.data.captions import CaptionTokenizer
from lit_vision.data.views.image_size import height_and_width
from lit_vision.errors import UserError
from lit_vision.methods.captioner.decoder import CaptionDecoder, beam_search
from lit_vision.methods.pixels import channel_values
from lit_vision.weights.pretrained import backbone_with_weights

# the modules in a checkpoint of this method
PARTS = frozenset({"backbone", "image_prefix", "caption_decoder"})
TRAIN_VIEW = "train"
MONITOR = ("val/cider", True)  # chooses best.ckpt: the metric, and whether more is better
# values of the hyper-parameters below that a checkpoint does not have, because it is older or only for use
DEFAULTS: dict[str, Any] = {"backbone": "vit_base_patch16_224", "backbone_args": None, "backbone_checkpoint": None}
DEFAULTS |= {"lock_image": False, "prefix_grid": 7, "vocab_size": 4096, "context_length": 64}
DEFAULTS |= {"decoder_width": 256, "decoder_depth": 2, "decoder_heads": 4, "dropout": 0.1, "seed": 0, "beams": 5}
DEFAULTS |= {"mean": None, "std": None, "tokenizer_json": None}


class ImagePrefix(nn.Module):
    """Turn the features of an image into the first tokens of a sequence: a layer norm and a linear map.

    Args:
        in_width: channels of the features.
        width: W.
        grid: side of the grid that the last map is averaged to, each cell being a token with a learned position; 0 for
            pooled features, which become one token.
    """

    map_indices = (-1,)  # of the backbone's maps: those that are used

    def __init__(self, in_width: int, width: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.norm, self.linear = nn.LayerNorm(in_width), nn.Linear(in_width, width)
        self.pos_embed = nn.Parameter(torch.empty(grid * grid, width)) if grid else None
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        if self.pos_embed is not None:
            nn.init.normal_(self.pos_embed, std=0.01)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, P, W) of a map (B, D, H, W), or of pooled features (B, D)."""
        if self.pos_embed is None:
            tokens: Tensor = self.linear(self.norm(features))[:, None]
            return tokens
        cells = F.adaptive_avg_pool2d(features, self.grid).flatten(2).transpose(1, 2)  # (B, P, D)
        return self.linear(self.norm(cells)) + self.pos_embed


class CaptionerNetwork(nn.Module):
    """Backbone, prefix and decoder.

    Args:
        h: hyper-parameters of `lit_vision.methods.captioner.captioner.Captioner`, as its checkpoints hold them.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do. PartialMatchError (a UserError):
            `backbone_checkpoint` does not fit.
    """

    method_name, parts, train_view, monitor = "Captioner", PARTS, TRAIN_VIEW, MONITOR

    def __init__(self, h: Mapping[str, Any]) -> None:
        super().__init__()
        self.hparams: Any = {**h, **DEFAULTS, **h}  # in the order of h; a LightningModule has its own
        self.build(self.hparams)

    def build(self, h: Mapping[str, Any]) -> None:
        """Make and initialise the parts."""
        grid = h["prefix_grid"]
        if grid < 0:
            raise UserError(f"model.prefix_grid: {grid}; give the side of a grid of tokens, or 0 for pooled features")
        if h["beams"] < 1:
            raise UserError(f"model.beams: {h['beams']}; give 1 (greedy) or more")
        start = h["backbone_checkpoint"]
        self.backbone, mean, std = backbone_with_weights(h["backbone"], h["backbone_args"] or {}, start)
        self.backbone.requires_grad_(not h["lock_image"])
        width = h["decoder_width"]
        self.image_prefix = ImagePrefix(_prefix_width(self.backbone, grid), width, grid)
        if grid:  # parts behind the last map get no gradient
            freeze_unused(self.backbone, self.image_prefix, _side(self.backbone))
        self.caption_decoder = CaptionDecoder(
            h["vocab_size"],
            h["context_length"],
            width,
            h["decoder_depth"],
            h["decoder_heads"],
            h["dropout"],
            h["seed"],
        )
        channels = self.backbone.config["in_chans"]
        self.register_buffer("mean", torch.tensor(channel_values("mean", h["mean"], mean, channels)))
        self.register_buffer("std", torch.tensor(channel_values("std", h["std"], std, channels)))
        self.train()  # a locked backbone must be in evaluation mode from the start

    def forward(self, images: Tensor) -> Tensor:
        """Return the prefix (B, P, W) of normalised images (B, C, H, W)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.hparams["lock_image"]):
            grid = self.hparams["prefix_grid"]
            features = self.backbone.forward_maps(images)[-1] if grid else self.backbone(images)
        prefix: Tensor = self.image_prefix(features)
        return prefix

    def token_log_probabilities(
        self, prefix: Tensor, tokens: Tensor, mask: Tensor, keys: Tensor | None = None
    ) -> Tensor:
        """Return the log-probability of each token after the first, given the image and the tokens before: (B, S - 1).

        Args:
            prefix: (B, P, W), from `forward`.
            tokens: (B, S) int64 of captions, from the start token to the end token.
            mask: (B, S) bool, False for padding at the end of a row, whose log-probability is 0.
            keys: (B, any) int64, for dropout while training; None drops nothing.
        """
        logits = self.caption_decoder(prefix, tokens[:, :-1], keys)
        found = logits.log_softmax(-1).gather(2, tokens[:, 1:, None]).squeeze(2)
        return torch.where(mask[:, 1:], found, 0)

    @torch.no_grad()
    def caption(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (B, S) and mean log-probabilities (B,) of the captions of normalised images; see `beam_search`.

        Raises:
            UserError: as `tokenizer`.
        """
        numbers = self.tokenizer
        beams, prefix = self.hparams["beams"], self(images)
        found: tuple[Tensor, Tensor] = beam_search(
            self.caption_decoder, prefix, beams, numbers.start, numbers.end, numbers.pad
        )
        return found

    @cached_property
    def tokenizer(self) -> CaptionTokenizer:
        """The tokenizer of the captions that the decoder was trained on.

        Raises:
            UserError: the checkpoint has none, it adds no start and end, or `tokenizers` is not installed.
        """
        if self.hparams["tokenizer_json"] is None:
            raise UserError("the model has no tokenizer: it was not trained on captions of PairsDataModule")
        tokenizer = CaptionTokenizer(self.hparams["tokenizer_json"], self.hparams["context_length"])
        if tokenizer.start < 0 or tokenizer.pad in (tokenizer.start, tokenizer.end):
            raise UserError("data.tokenizer: a decoder needs one that adds a start and an end token; leave it out")
        return tokenizer

    def train(self, mode: bool = True) -> CaptionerNetwork:
        """Set training mode, except for a locked backbone: its batch-norm statistics are fixed, drop path is off."""
        super().train(mode)
        if self.hparams["lock_image"]:
            self.backbone.eval()
        return self


def _side(backbone: Backbone) -> int:
    return min(height_and_width(tuple(backbone.data_config["input_size"][-2:])))


def _prefix_width(backbone: Backbone, grid: int) -> int:
    has_maps = grid and len(backbone.strides) > 1  # a CNN's; a ViT's one map has its width
    return map_shapes(backbone, _side(backbone))[-1][0] if has_maps else backbone.width
