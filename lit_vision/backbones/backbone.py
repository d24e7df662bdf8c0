"""A timm model behind one interface: pooled features, tokens of visible patches, feature maps, layer groups.

Letters: B images, C channels, H W pixels, L patches, D width.

Small backbones for 32-pixel images, cheap enough for two CPU cores (lists from a YAML recipe work like tuples):
    Backbone("resnet18", stem="small", layers=(1, 1, 1, 1), channels=(16, 32, 64, 128))              # 0.32 M parameters
    Backbone("vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=96, depth=6, num_heads=3)  # 0.68 M parameters
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.layers import PatchEmbed
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_vision.backbones.create import check_patches, create_timm_model, feature_strides, lists_to_tuples
from lit_vision.backbones.layer_groups import group_layers
from lit_vision.backbones.pruned import keep_channels
from lit_vision.backbones.stems import make_stem_small, make_stem_wide
from lit_vision.data.views.image_size import ImageSize, height_and_width, plain_size
from lit_vision.errors import UserError


class Backbone(nn.Module):
    """Any timm model without its classifier.

    Args:
        name: timm's name, as `timm.list_models()` gives it, with or without a weight tag
            ("vit_base_patch16_224.augreg_in21k").
        pretrained: load timm's weights of that name (needs the network once).
        img_size: of the input in pixels: side of a square, or [height, width]. ViTs are built for it; CNNs take any
            size and only note it in `data_config`.
        patch_size: side of a patch in pixels, models with patches only.
        in_chans: channels of the input.
        pool: None is the model's own. "avg": mean over patches (ViTs: without cls; the final norm then comes after the
            mean, timm's `fc_norm`) or over positions. "token": the cls token after the final norm, ViTs only.
        stem: "small" is for CNNs on images of about 32 pixels: the first convolution becomes 3x3 with stride 1, and the
            max-pool after it goes (SimCLR's CIFAR variant, Chen et al. 2020, arXiv:2002.05709, B.9). "wide" is for wide
            ResNets (`channels` in timm_args): the stem gets the first stage's width, as SimCLR's 2x and 4x have it.
        drop_path_rate: stochastic depth, 0 to 1.
        pruned: the channels and heads that `lit-vision prune` kept (pruned.py); the others are removed.
        timm_args: what else timm's constructor of this family takes.

    Attributes:
        model: the timm model; its keys in a state dict are timm's.
        width: D, length of the feature vector.
        strides: pixels of the input per position of each map of `forward_maps`.
        data_config: mean, std, interpolation, crop_pct and input_size of these weights, as timm knows them.
        config: the arguments above, to build the same model again.
        weights_from: package, version, license and sha256 of weights that came from a package; "" for others.

    Raises:
        UserError: unknown name (with close ones), an argument that this family does not take, weights that cannot be
            fetched.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        img_size: ImageSize | None = None,
        patch_size: int | None = None,
        in_chans: int = 3,
        pool: Literal["avg", "token"] | None = None,
        stem: Literal["imagenet", "small", "wide"] = "imagenet",
        drop_path_rate: float = 0.0,
        pruned: Mapping[str, Mapping[str, str]] | None = None,
        **timm_args: Any,
    ) -> None:
        super().__init__()
        self.weights_from = ""
        self.config: dict[str, Any] = {
            "name": name,
            "img_size": None if img_size is None else plain_size(img_size),
            "patch_size": patch_size,
            "in_chans": in_chans,
            "pool": pool,
            "stem": stem,
            "drop_path_rate": drop_path_rate,
            **timm_args,
        }
        _check_choices(pool, stem, pretrained)
        arguments = {key: lists_to_tuples(value) for key, value in timm_args.items()}
        arguments.update(in_chans=in_chans, num_classes=0)
        arguments.update({"global_pool": pool} if pool else {}, **({"patch_size": patch_size} if patch_size else {}))
        if drop_path_rate:
            arguments["drop_path_rate"] = drop_path_rate
        if stem == "small" and name.startswith("vgg"):
            # its 100 M fully connected weights are left out; do not spend 7 s to draw them
            arguments["mlp_ratio"] = 1 / 4096
        self.model = create_timm_model(name, pretrained, img_size, arguments)
        if pool == "token" and not isinstance(self.model, VisionTransformer):
            raise UserError(f"pool: 'token' needs a ViT with a cls token, {name} has none; use 'avg' or None")
        if img_size or patch_size:
            check_patches(self.model)
        reductions = feature_strides(self.model)
        if stem == "wide":
            make_stem_wide(name, self.model)
        elif stem == "small":
            reductions = make_stem_small(name, self.model, reductions)
        self.strides = reductions[-1:] if is_vit(self.model) else reductions
        self.data_config = resolve_model_data_config(self.model)
        if img_size is not None:
            self.data_config["input_size"] = (in_chans, *height_and_width(img_size))
        if pruned is not None:
            self.config["pruned"] = pruned  # other models' files stay as they were
            keep_channels(self.model, pruned, (in_chans, *self.data_config["input_size"][-2:]))
        if not is_vit(self.model):
            self.model.to(memory_format=torch.channels_last)
        self.width: int = getattr(self.model, "head_hidden_size", None) or self.model.num_features

    def _to_channels_last(self, images: Tensor) -> Tensor:
        """Return a CNN's images channels last in memory.

        Convolutions are then 1.3 to 2 times faster on CPUs with few channels, and it is the layout of tensor cores.
        """
        return images if is_vit(self.model) else images.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled features.

        Args:
            images: (B, C, H, W) float, normalised as the weights expect it.

        Returns:
            (B, D).

        Raises:
            UserError: the model is built for another size.
        """
        self._check_size(images)
        return self.model(self._to_channels_last(images))

    def forward_tokens(self, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Return the tokens after the last block (and the final norm if the model has one before pooling), cls first.

        Patches that are not in `ids_keep` are neither embedded nor seen by a block: MAE's encoder (He et al. 2022,
        arXiv:2111.06377, section 3). Each remaining patch has the position of its place in the image.
        timm's `model.set_grad_checkpointing()` is respected.

        Args:
            images: (B, C, H, W) float, normalised.
            ids_keep: (B, L_keep) indices of the patches to keep, row-major over the grid; None keeps all in order.

        Returns:
            (B, 1 + L_keep, D).

        Raises:
            UserError: not a plain ViT (cls token, no registers, learned or fixed absolute positions), or another image
                size.
        """
        model = self.model
        if not is_plain_vit(model):
            raise UserError(
                f"backbone: {self.config['name']} has no tokens to drop; use a plain ViT: "
                "vit_tiny|small|base|large_patch16_224, vit_huge_patch14_224, deit3_*"
            )
        self._check_size(images)
        cls, position = model.cls_token, model.pos_embed[0]
        if not model.no_embed_class:  # DeiT III: the cls token has no position
            cls, position = cls + position[:1], position[1:]
        if ids_keep is None:
            x = model.patch_embed(images) + position  # (B, L, D)
        else:
            x = _embed_patches(model.patch_embed, images, ids_keep) + position[ids_keep]  # (B, L_keep, D)
        x = model.norm_pre(model.pos_drop(torch.cat([cls.expand(x.shape[0], -1, -1), x], dim=1)))
        if model.grad_checkpointing and torch.is_grad_enabled():
            for block in model.blocks:
                x = checkpoint(block, x, use_reentrant=False)
        else:
            x = model.blocks(x)
        return model.norm(x)

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """Return feature maps, fine to coarse, one for each of `strides`; a ViT's last one, without the final norm.

        Args:
            images: (B, C, H, W) float, normalised.

        Returns:
            [(B, C_i, H_i, W_i)]; H_i is H / strides[i] up to rounding (Inception's unpadded convolutions lose a few
            rows more).

        Raises:
            UserError: the model is built for another size, or this family gives no maps.
        """
        if not hasattr(self.model, "forward_intermediates"):
            raise UserError(f"backbone: timm gives no feature maps of {self.config['name']}; choose another family")
        self._check_size(images)
        maps: list[Tensor] = self.model.forward_intermediates(
            images, indices=1 if is_vit(self.model) else None, intermediates_only=True
        )
        return maps

    def layer_groups(self) -> list[list[str]]:
        """Return the names of this module's parameters by depth, input to output, for layer-wise learning rates.

        A ViT has depth + 2 groups: cls, positions and patch embedding; one per block; final norm (He et al. 2022, A.1).
        timm's own matcher would put a token-pooled ViT's `norm` with the last block. Other families: layer_groups.py.
        The last group holds what comes after the last block or stage (it may be empty); a head outside belongs there
        too.

        Raises:
            UserError: nothing matched, so that a layer decay would touch no layer.
        """
        groups = [[f"model.{name}" for name in group] for group in group_layers(self.model)]
        if not any(groups[:-1]):
            raise UserError(f"backbone: no layer group of {self.config['name']} matched; use layer_decay 1")
        return groups

    def _check_size(self, images: Tensor) -> None:
        embed = getattr(self.model, "patch_embed", None)
        size = getattr(embed, "img_size", None)
        if size is None or not getattr(embed, "strict_img_size", False):
            return
        if tuple(images.shape[-2:]) != tuple(size):
            raise UserError(
                f"img_size: images are {images.shape[-2]}x{images.shape[-1]} pixels and {self.config['name']} is built "
                f"for {size[0]}x{size[1]}; set img_size in backbone_args or of the data"
            )


def _check_choices(pool: str | None, stem: str, pretrained: bool) -> None:
    """Refuse a pooling or stem that there is not, or one without weights.

    Raises:
        UserError: names the argument.
    """
    if pool not in (None, "avg", "token"):
        raise UserError(f"pool: {pool!r} is not None, 'avg' or 'token'; choose one of these")
    if stem not in ("imagenet", "small", "wide"):
        raise UserError(f"stem: {stem!r} is not 'imagenet', 'small' or 'wide'; choose one of these")
    if stem != "imagenet" and pretrained:
        raise UserError(f"stem: {stem!r} has no pre-trained weights; use stem='imagenet' or pretrained=False")


def _embed_patches(embed: nn.Module, images: Tensor, ids: Tensor) -> Tensor:
    """Apply timm's patch embedding to some patches only.

    The convolution's stride is its size, so it is a linear map of a patch's pixels.
    images (B, C, H, W); ids (B, L_keep), row-major over the grid. Returns (B, L_keep, D).
    """
    (p, q), (b, c, h, w) = embed.patch_size, images.shape
    grid = images.reshape(b, c, h // p, p, w // q, q).permute(0, 2, 4, 1, 3, 5)  # (B, H/P, W/P, C, P, P), a view
    rows, columns = ids // (w // q), ids % (w // q)
    pixels = grid[torch.arange(b, device=ids.device)[:, None], rows, columns]  # (B, L_keep, C, P, P)
    return embed.norm(F.linear(pixels.flatten(2), embed.proj.weight.flatten(1), embed.proj.bias))


def is_vit(model: nn.Module) -> bool:
    """True for timm models of transformer blocks on embedded patches: ViT, DeiT, BEiT, EVA and the like."""
    return hasattr(model, "blocks") and hasattr(model, "patch_embed")


def is_plain_vit(model: nn.Module) -> bool:
    """True for a ViT of one cls token and patches with absolute positions, each patch a linear map of its pixels."""
    return (
        isinstance(model, VisionTransformer)
        and isinstance(model.patch_embed, PatchEmbed)  # not a convolutional stem, where a patch sees its neighbours
        and model.cls_token is not None
        and model.num_prefix_tokens == 1
        and model.pos_embed is not None
        and not model.dynamic_img_size
    )
