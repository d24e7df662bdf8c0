"""Attention rollout for ViTs and Grad-CAM for CNNs, drawn over the image.

Letters: B images, C channels, H W positions of a map, h w rows and columns of patches, L tokens, S side of the input.
Both work on the unchanged model in forty lines; a library would wrap the model and not support prompts and adapters.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from timm.models import ResNet
from torch import Tensor, nn

from lit_vision.backbones.backbone import Backbone, is_vit
from lit_vision.errors import UserError

# Smallest side of Grad-CAM's maps, positions. With 2 x 2 every image showed the same corner; 8 x 8 depended less on the
# class.
MIN_MAP_SIDE = 4


def attention_rollout(backbone: Backbone, images: Tensor) -> Tensor:
    """Return the share of each patch in the pooled feature, following attention through all blocks.

    With A_i the attention of block i, averaged over heads:  R = prod over i of (A_i + I) / 2, later blocks on the left.
    Source: Abnar and Zuidema 2020, arXiv:2005.00928, section 3. The result is the row of cls, or the mean of the
    patches' rows where the model averages patches. Contributions of prompts count for no patch. It does not depend on
    the class.

    Args:
        backbone: a ViT of timm with plain attention, in evaluation mode.
        images: (B, 3, S, S) float, normalized.

    Returns:
        (B, h, w) float32, not negative, sum at most 1 (the rest belongs to cls, registers and prompts).

    Raises:
        UserError: another model.
    """
    model = backbone.model
    blocks = list(getattr(model, "blocks", ()))
    if not blocks or not all(hasattr(getattr(b, "attn", None), "qkv") for b in blocks):
        raise UserError(f"{backbone.config['name']}: has no plain attention; explanations need a ViT with it, or a CNN")
    maps: list[Tensor] = []
    hooks = [b.attn.register_forward_pre_hook(lambda attn, x: maps.append(_attention(attn, x[0]))) for b in blocks]
    try:
        with torch.no_grad():
            backbone(images)
    finally:
        for hook in hooks:
            hook.remove()
    grid_height, grid_width = model.patch_embed.grid_size
    patches = grid_height * grid_width
    prefix = model.num_prefix_tokens
    prompts = maps[0].shape[1] - prefix - patches
    rollout = torch.eye(maps[0].shape[1]).expand_as(maps[0]).clone()
    for i, attention in enumerate(maps):
        if i and prompts:
            if attention.shape != rollout.shape:
                raise UserError(
                    f"{backbone.config['name']}: the number of tokens changes between blocks; attention rollout cannot "
                    "explain it"
                )
            if len(backbone.prompts.sets[backbone.prompts.active]) > 1:  # deep: each block has new prompts
                rollout[:, prefix : prefix + prompts] = 0
        rollout = (attention + torch.eye(attention.shape[1])) / 2 @ rollout
    rows = rollout[:, 0] if model.global_pool == "token" else rollout[:, -patches:].mean(1)
    return rows[:, -patches:].reshape(-1, grid_height, grid_width)


def _attention(attn: nn.Module, x: Tensor) -> Tensor:
    """Return the attention (B, L, L) of a timm block, mean over heads; rows sum to 1."""
    batch, tokens, _ = x.shape
    q, k, _ = attn.qkv(x).reshape(batch, tokens, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)  # each (B, heads, L, d)
    q, k = attn.q_norm(q), attn.k_norm(k)
    return (q.float() * attn.scale @ k.float().transpose(-2, -1)).softmax(-1).mean(1).cpu()


def grad_cam(backbone: Backbone, head: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Return a map of the positions that raise a class's logit: relu(sum over c of w_c A_c).

    w_c = mean over positions of d logit / d A_c, and A are the maps of the last stage; of a ResNet on small images, of
    the last stage with maps of at least 4 x 4 (of 32 pixels the last stage keeps 2 x 2, too few to locate anything).
    Source: Selvaraju et al. 2017, arXiv:1610.02391, Eq. 1 and 2.

    Args:
        backbone: a CNN, in evaluation mode.
        head: (B, D) features to (B, K) logits.
        images: (B, 3, S, S) float, normalized.
        classes: (B,) int64, the class of each image.

    Returns:
        (B, H, W) float32, not negative, on the CPU. Parameters get no gradient.

    Raises:
        UserError: this model has no maps before its pooling.
    """
    model = backbone.model
    leaves: list[Tensor] = []

    def start_graph(module: nn.Module | None, inputs: Any, output: Tensor) -> Tensor:
        """Return the stage's maps as the leaf where the gradient graph begins."""
        leaves.append(output.detach().clone().requires_grad_())
        return leaves[0]

    stage = _find_stage(backbone, min(images.shape[-2:]))
    hook = stage.register_forward_hook(start_graph) if stage is not None else None
    try:
        with torch.set_grad_enabled(hook is not None):
            maps = model.forward_features(backbone._to_channels_last(images))
    finally:
        if hook is not None:
            hook.remove()
    if maps.ndim != 4:
        raise UserError(f"{backbone.config['name']}: has no feature maps; explanations need a CNN with them, or a ViT")
    if hook is None:
        maps = start_graph(None, None, maps)
    with torch.enable_grad():
        logits = head(model.forward_head(maps, pre_logits=True))
        (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), leaves)
    (maps,) = leaves  # (B, C, H, W), or channels last in Swin
    channels_last = hook is None and maps.shape[1] != model.num_features and maps.shape[3] == model.num_features
    channel, positions = (3, (1, 2)) if channels_last else (1, (2, 3))
    return (gradient.mean(positions, keepdim=True) * maps.detach()).sum(channel).relu().float().cpu()


def _find_stage(backbone: Backbone, side: int) -> nn.Module | None:
    """Return the last module with maps of at least MIN_MAP_SIDE a side; None for the end of the backbone.

    Only of ResNets: in other models a stage may be channels last, or not be the next one's input.
    """
    if not isinstance(backbone.model, ResNet):
        return None
    fine = [i for i, stride in enumerate(backbone.strides) if -(-side // stride) >= MIN_MAP_SIDE]
    if not fine or fine[-1] == len(backbone.strides) - 1:
        return None
    return backbone.model.get_submodule(backbone.model.feature_info[fine[-1]]["module"])


def explain(method: Any, images: Tensor, classes: Tensor) -> Tensor:
    """Return a heat map of each image's evidence: attention rollout for ViTs, Grad-CAM for other models.

    Args:
        method: has `backbone`, `head` and, if it normalizes features, `head_norm`, in evaluation mode.
        images: (B, 3, S, S) float, normalized.
        classes: (B,) int64; rollout does not use them.

    Returns:
        (B, h, w) float32 in [0, 1], the largest value of each image 1 (all 0 if nothing raises the class's logit).

    Raises:
        UserError: the model has neither plain attention nor maps.
    """
    backbone = method.backbone
    if is_vit(backbone.model):
        heat = attention_rollout(backbone, images)
    else:
        head = nn.Sequential(getattr(method, "head_norm", nn.Identity()), method.head)
        heat = grad_cam(backbone, head, images, classes)
    top = heat.amax((1, 2), keepdim=True)
    return heat / torch.where(top > 0, top, torch.ones_like(top))


def overlay(pixels: np.ndarray, heat: np.ndarray, side: int = 224, strength: float = 0.5) -> np.ndarray:
    """Return the image next to the same image under a colored map (viridis: dark is 0, yellow is 1).

    Args:
        pixels: (S, S, 3) uint8, RGB.
        heat: (h, w) float in [0, 1].
        side: smallest side of each of the two images, pixels; smaller images are enlarged.
        strength: share of the color, 0 to 1.

    Returns:
        (T, 2 T + gap, 3) uint8.
    """
    side = max(side, pixels.shape[0])
    plain = cv2.resize(
        pixels, (side, side), interpolation=cv2.INTER_CUBIC if side > pixels.shape[0] else cv2.INTER_AREA
    )
    smooth = F.interpolate(torch.from_numpy(heat)[None, None].float(), (side, side), mode="bilinear")[0, 0].numpy()
    color = cv2.applyColorMap((smooth.clip(0, 1) * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[:, :, ::-1]
    mixed = (plain * (1 - strength) + color * strength).round().astype(np.uint8)
    return np.concatenate([plain, np.full((side, max(2, side // 56), 3), 255, np.uint8), mixed], axis=1)
