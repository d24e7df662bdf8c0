"""MAE's decoder, and which attention kernel suits the device. B images, L patches, D encoder width, d decoder width, P patch side."""

from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_vision.backbones.pos_embed import sincos_2d

LONG = 128  # tokens from which on the fused kernel's float32 path pays on CPUs


def select_attention_kernel(module: nn.Module, images: Tensor, tokens: int) -> None:
    """Let every attention layer of timm in `module` use PyTorch's fused kernel, or plain products where those are faster.

    That is on CPUs in bfloat16, where the fused kernel's backward runs without AMX: forward + backward of 16 images took 114 ms instead of
    208 ms in a decoder block of ViT-B (197 tokens, 16 heads), 14 ms instead of 69 ms in an encoder block (50 tokens, 12 heads). In
    float32 the fused kernel wins on many tokens (120 ms against 169 ms there) and loses on few (18.4 against 17.0; up to 15 % of a
    step of the small ViT for 32 pixels).

    Args:
        module: the encoder or the decoder.
        images: the batch, for its device and dtype; autocast counts.
        tokens: of each image.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
    fused = images.device.type != "cpu" or (tokens >= LONG and dtype != torch.bfloat16)
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = fused


class DecoderBlock(Block):
    """timm's plain block; with `first` it computes only what the tokens from there on need. No layer scale, dropout, norms on q and k."""

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """x (B, N, d); returns (B, N - first, d), equal to forward(x)[:, first:]."""
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
    """Predicts pixels of patches from the latent of the visible ones; thrown away after pre-training.

    Tokens stay in shuffled order, visible ones first: attention knows no order, and each token carries its position. So nothing is put
    back in order before the end, and what only the hidden patches need is a slice.

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
        """Predictions in shuffled order.

        Args:
            latent: (B, 1 + L_keep, D), cls first, then the visible patches as `shuffle` has them.
            shuffle: (B, L) indices of the patches, visible ones first.
            hidden_only: leave out what no hidden patch needs: the last block's work on visible tokens and their predictions
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

    def _run(self, block, *inputs) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


def init_weights(module: nn.Module) -> None:
    """The paper's initialisation for one module: xavier uniform and zero bias for every Linear, 1 and 0 for LayerNorm (A.1).
    A convolution (the patch embedding) is treated as the Linear of its patch; its bias keeps PyTorch's default."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.data.flatten(1))
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
