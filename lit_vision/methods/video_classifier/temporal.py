"""Ways to join the frames of a clip: mean, LSTM, attention, and shifted channels inside the backbone (TSM).

B clips, T frames, D width of a frame's features, W width of a clip's features.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lit_vision.backbones.backbone import Backbone, is_vit
from lit_vision.errors import UserError

TEMPORAL_MODES = ("mean", "lstm", "attention", "tsm")
SHIFT_DIVISOR = 8  # an eighth of the channels from each neighbor, the paper's choice


def temporal_shift(x: Tensor, frames: int, channel_dim: int = 1) -> Tensor:
    """Return features in which an eighth of the channels are the next frame's and an eighth the previous frame's.

    Source: TSM, Lin et al. 2019, arXiv:1811.08383, section 3.
    Unlike the paper, which fills the ends of a clip with zeros: there the first and the last frame are their own
    neighbors. So a clip of equal frames is left as it is, and one frame too: the network is then the image network.

    Args:
        x: (B x T, ...), the frames of a clip one after the other.
        frames: T.
        channel_dim: the dimension of the channels, whose number is divided by 8 and rounded down.

    Returns:
        Of the shape of x: the first eighth of the channels from frame t + 1, the second eighth from frame t - 1.
    """
    clips = x.movedim(channel_dim, -1).unflatten(0, (-1, frames))  # (B, T, ..., C)
    part = clips.shape[-1] // SHIFT_DIVISOR
    ahead, behind, same = clips.split([part, part, clips.shape[-1] - 2 * part], dim=-1)
    ahead = torch.cat([ahead[:, 1:], ahead[:, -1:]], dim=1)
    behind = torch.cat([behind[:, :1], behind[:, :-1]], dim=1)
    return torch.cat([ahead, behind, same], dim=-1).flatten(0, 1).movedim(-1, channel_dim)


class ShiftHook:
    """Forward pre-hook that shifts the channels of a module's first argument, see `temporal_shift`.

    A hook and no module around the layer: the weights keep their names, and an image model's can be loaded.

    Attributes:
        frames: T of the next batch.

    Args:
        channel_dim: of the argument.
    """

    def __init__(self, channel_dim: int) -> None:
        self.channel_dim, self.frames = channel_dim, 1

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments with the first one shifted; torch calls this before the module's forward."""
        return temporal_shift(args[0], self.frames, self.channel_dim), *args[1:]


def add_temporal_shift(backbone: Backbone) -> ShiftHook:
    """Shift channels at the start of every residual branch of a backbone; return the hook, which takes the frames.

    The branches: of ResNets every block's first convolution, of MobileNets and EfficientNets the expansion of every
    block with a skip connection, of ViTs the attention of every block, whose tokens hold the channels.

    Raises:
        UserError: a family without such blocks.
    """
    blocks = list(backbone.model.modules())
    branches = [block.conv1 for block in blocks if isinstance(block, (BasicBlock, Bottleneck))]
    branches += [block.conv_pw for block in blocks if isinstance(block, InvertedResidual) and block.has_skip]
    hook = ShiftHook(channel_dim=1)
    if not branches and is_vit(backbone.model):
        branches = [block.attn for block in backbone.model.blocks if hasattr(block, "attn")]
        hook = ShiftHook(channel_dim=-1)
    if not branches:
        raise UserError(
            f"temporal: tsm shifts channels in residual blocks and {backbone.config['name']} has none that it knows; "
            "take a ResNet, ResNeXt, MobileNetV2 or V3, EfficientNet or ViT, or another value of temporal"
        )
    for branch in branches:
        branch.register_forward_pre_hook(hook)
    return hook


class FrameMean(nn.Module):
    """Mean over the frames, which is the same to the last bit in any order of the frames.

    Floating-point sums depend on their order, so each feature's values are sorted over time before they are added.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, D) of (B, T, D)."""
        return features.sort(dim=1).values.contiguous().mean(1)


class FrameLSTM(nn.Module):
    """Last hidden state of an LSTM of one layer over the frames (Donahue et al. 2015, arXiv:1411.4389).

    Unlike that paper, which averages the predictions after each frame.

    Args:
        features: D.
        width: W, of the hidden state.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.lstm = nn.LSTM(features, width, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, W) of (B, T, D)."""
        states: Tensor = self.lstm(features)[0]
        return states[:, -1]


def frame_positions(frames: int, width: int) -> Tensor:
    """Return the fixed positions of frames 0 to T - 1, (T, W) float32: sin(t w_k) for all k, then cos(t w_k).

    w_k = 10000^(-k / (W / 2)), as in Vaswani et al. 2017, arXiv:1706.03762, section 3.5; W is even.
    """
    omega = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64, device="cpu") / (width // 2))
    angles = torch.arange(frames, dtype=torch.float64, device="cpu")[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


class FrameAttention(nn.Module):
    """One transformer block over the frames' features and fixed positions, then the mean over the frames.

    Args:
        features: D.
        width: W, of the block; even, and a multiple of `heads`.
        heads: of its attention.

    Raises:
        UserError: another width.
    """

    def __init__(self, features: int, width: int, heads: int) -> None:
        super().__init__()
        if width % 2 or heads < 1 or width % heads:
            raise UserError(f"temporal_width: {width} is not an even multiple of temporal_heads {heads}; change one")
        self.width = width
        self.embed = nn.Linear(features, width)
        self.block = Block(width, heads, qkv_bias=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, W) of (B, T, D)."""
        embedded = self.embed(features)
        x = embedded + frame_positions(features.shape[1], self.width).to(embedded)
        return self.norm(self.block(x)).mean(1)


def build_temporal(mode: str, features: int, width: int, heads: int) -> FrameMean | FrameLSTM | FrameAttention:
    """Return the module that joins the frames' features (B, T, D) to (B, W): see TEMPORAL_MODES.

    Args:
        mode: one of TEMPORAL_MODES; with "mean" and "tsm" W is D.
        features: D.
        width: W of the others.
        heads: of attention.

    Raises:
        UserError: an unknown mode, or sizes that do not fit.
    """
    if mode not in TEMPORAL_MODES:
        raise UserError(f"temporal: {mode!r} is not one of {', '.join(TEMPORAL_MODES)}; choose one of these")
    if width < 1:
        raise UserError(f"temporal_width: {width} is too small; give 1 or more, 256 is usual")
    if mode == "lstm":
        return FrameLSTM(features, width)
    return FrameAttention(features, width, heads) if mode == "attention" else FrameMean(features)
