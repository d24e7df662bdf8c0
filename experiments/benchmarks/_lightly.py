"""MAE and SimCLR of lightly with the backbones of ours, for the comparison of training steps."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def is_installed() -> bool:
    """Return True if lightly is installed (pip install 'lit-vision[bench]')."""
    return importlib.util.find_spec("lightly") is not None


def mae(vit_name: str, vit_args: dict[str, Any], decoder: dict[str, int]) -> nn.Module:
    """Build lightly's MAE as in its example (examples/pytorch/mae.py), on the same timm ViT."""
    import timm
    from lightly.models import utils
    from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM

    class LightlyMAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            vit, width = timm.create_model(vit_name, num_classes=0, **vit_args), decoder["decoder_width"]
            self.patch = vit.patch_embed.patch_size[0]
            self.backbone = MaskedVisionTransformerTIMM(vit=vit)
            self.embed, self.pred = nn.Linear(vit.embed_dim, width), nn.Linear(width, 3 * self.patch**2)
            depth, heads = decoder["decoder_depth"], decoder["decoder_heads"]
            self.decoder = MaskedVisionTransformerDecoderTIMM(vit.patch_embed.num_patches, width, depth, heads)

        def forward(self, images: Tensor) -> Tensor:
            size = (len(images), self.backbone.sequence_length)
            keep, mask = utils.random_token_mask(size=size, mask_ratio=0.75, device=images.device)
            latent = self.embed(self.backbone.encode(images=images, idx_keep=keep))
            tokens = utils.repeat_token(self.decoder.mask_token, size)
            decoded = self.decoder(utils.set_at_index(tokens, keep, latent.type_as(tokens)))
            pred = self.pred(utils.get_at_index(decoded, mask))
            target = utils.get_at_index(utils.patchify(images, self.patch), mask - 1)
            return F.mse_loss(pred, target)

    return LightlyMAE()


def simclr(resnet: str, args: dict[str, Any], width: int) -> nn.Module:
    """Build SimCLR of the same backbone in the default memory layout, with lightly's head and loss."""
    import timm
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    class LightlySimCLR(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = timm.create_model(resnet, num_classes=0, **args)
            self.head, self.criterion = SimCLRProjectionHead(width, width, 128), NTXentLoss(temperature=0.1)

        def forward(self, views: Tensor) -> Tensor:
            return self.criterion(*(self.head(self.backbone(views[:, i])) for i in range(2)))

    return LightlySimCLR()
