"""Decoder of MAE, and choice of the attention kernel.

B images, L patches, D encoder width, d decoder width, P patch side.
"""

from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_vision.backbones.pos_embed import sincos_2d

MIN_TOKENS_FUSED = 128  # from here on the fused kernel's float32 path is faster on CPUs


def select_attention_kernel(module: nn.Module, images: Tensor, tokens: int) -> None:
    """Choose PyTorch's fused kernel or plain matrix products, whichever is faster, for timm's attention layers.

    Plain products are faster on CPUs in bfloat16, where the fused kernel's backward runs without AMX: forward +
    backward of 16 images took 114 ms instead of 208 ms in a decoder block of ViT-B (197 tokens, 16 heads), 14 ms
    instead of 69 ms in an encoder block (50 tokens, 12 heads). In float32 the fused kernel is faster with many tokens
    (120 ms against 169 ms there) and slower with few (18.4 against 17.0 ms; up to 15 % of a step of the small ViT for
    32 pixels).

    Args:
        module: the encoder or the decoder; its `fused_attn` flags change.
        images: the batch, for its device and dtype; autocast counts.
        tokens: of each image.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
    fused = images.device.type != "cpu" or (tokens >= MIN_TOKENS_FUSED and dtype != torch.bfloat16)
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = fused


class DecoderBlock(Block):
    """Transformer block of timm that can leave out the outputs of the first tokens.

    Without layer scale, dropout and norms on q and k.
    """

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """Turn (B, N, d) into (B, N - first, d): the block's outputs for the tokens from `first` on."""
        if first == 0:
            return super().forward(x)
        attention, (b, _, width) = self.attn, x.shape
        weight, bias = attention.qkv.weight, attention.qkv.bias
        h = self.norm1(x)
        parts = [
            F.linear(h[:, first:], weight[:width], bias[:width]),
            *F.linear(h, weight[width:], bias[width:]).chunk(2, -1),
        ]
        q, k, v = (part.reshape(b, -1, attention.num_heads, attention.head_dim).transpose(1, 2) for part in parts)
        if attention.fused_attn:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q * attention.scale @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        x = x[:, first:] + attention.proj(mixed.transpose(1, 2).reshape(b, -1, width))
        return x + self.mlp(self.norm2(x))


class MAEDecoder(nn.Module):
    """Predict pixels of patches from the latent of the visible ones; not used after pre-training.

    Tokens stay in shuffled order, visible ones first: attention does not depend on the order, and each token has its
    position embedding. So the order is restored only at the end, and the hidden patches are a slice.

    Args:
        in_width: D of the encoder.
        width: d. The paper: 512; 64 with depth 2 and 4 heads is enough for 32-pixel images on a CPU.
        depth: blocks.
        heads: attention heads, a divisor of width.
        grid: patches per column and row.
        out: P*P*C.

    Attributes:
        checkpointing: compute the blocks' activations again in backward instead of keeping them.
    """

    def __init__(self, in_width: int, width: int, depth: int, heads: int, grid: tuple[int, int], out: int) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.embed = nn.Linear(in_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1], width), requires_grad=False)
        self.pos_embed.data.copy_(sincos_2d(width, grid))
        self.blocks = nn.Sequential(
            *(DecoderBlock(width, heads, 4.0, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        )
        self.norm = norm(width)
        self.pred = nn.Linear(width, out)
        self.checkpointing = False

    def forward(self, latent: Tensor, shuffle: Tensor, hidden_only: bool = False) -> Tensor:
        """Return predictions in shuffled order.

        Args:
            latent: (B, 1 + L_keep, D), cls first, then the visible patches as `shuffle` has them.
            shuffle: (B, L) indices of the patches, visible ones first.
            hidden_only: leave out the last block's outputs for visible tokens and their predictions
                (1.6 % of a ViT-B step's multiply-adds, 25 % of the last block's).

        Returns:
            (B, L, P*P*C), or (B, L - L_keep, P*P*C) with hidden_only.
        """
        x = self.embed(latent)  # (B, 1 + L_keep, d)
        hidden = self.mask_token.to(x.dtype).expand(len(x), shuffle.shape[1] + 1 - x.shape[1], -1)
        position = self.pos_embed[0, 1:][shuffle]  # (B, L, d)
        position = torch.cat([self.pos_embed[:, :1].expand(len(x), -1, -1), position], dim=1)
        first = x.shape[1] if hidden_only else 1
        x = torch.cat([x, hidden], dim=1) + position
        for block in self.blocks[:-1]:
            x = self._run(block, x)
        x = self._run(self.blocks[-1], x, first)
        return self.pred(self.norm(x))

    def _run(self, block: nn.Module, x: Tensor, first: int = 0) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, x, first, use_reentrant=False)
        else:
            out = block(x, first)
        return out


def init_weights(module: nn.Module) -> None:
    """Initialise one module as the paper does (A.1): Linear xavier uniform with zero bias, LayerNorm 1 and 0.

    A convolution (the patch embedding) is treated as the Linear of its patch; its bias has PyTorch's default.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.data.flatten(1))
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
