"""Masked autoencoder (MAE) without Lightning: masking, loss, decoder, network. He et al. 2022, arXiv:2111.06377.

Patches, masking and loss as plain functions, the decoder, then the network that joins them; mae.py trains it.
B images, C H W channels and pixels, P patch side, L patches, D and d width of encoder and decoder.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_vision.backbones.backbone import Backbone, is_plain_vit
from lit_vision.backbones.pos_embed import sincos_2d
from lit_vision.errors import UserError
from lit_vision.methods.pixels import channel_values

PARTS = frozenset({"backbone", "decoder"})  # the modules in a checkpoint of this method
TRAIN_VIEW = "mae"  # the view of the paper's crop and flip
# values of the hyper-parameters below that a checkpoint does not have, because it is older or only for use
DEFAULTS: dict[str, Any] = {"backbone": "vit_base_patch16_224", "backbone_args": None, "mean": None, "std": None}
DEFAULTS |= {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16, "checkpointing": False}
DEFAULTS |= {"mask_ratio": 0.75, "truncate_keep": False, "norm_pix_loss": True}


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Turn (B, C, H, W) into (B, L, P*P*C): patches row-major; in a patch row, column, channel, the channel fastest."""
    b, c, h, w = images.shape
    x = images.reshape(b, c, h // patch_size, patch_size, w // patch_size, patch_size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // patch_size) * (w // patch_size), patch_size * patch_size * c)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Turn (B, L, P*P*C) into (B, C, H, W), the exact inverse of `patchify`; grid is (H / P, W / P)."""
    b, _, n = patches.shape
    x = patches.reshape(b, *grid, patch_size, patch_size, n // patch_size**2)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, n // patch_size**2, grid[0] * patch_size, grid[1] * patch_size)


def patches_kept(num_patches: int, mask_ratio: float, truncate: bool = False) -> int:
    """Return L_keep, the number of patches that the encoder sees.

    The number of *masked* patches is L * mask_ratio rounded to the nearest (half up), so of 100 patches at 0.9 it keeps
    10. The official code truncates L * (1 - mask_ratio) instead: the same at 0.75 for all grids of the paper, but 9 for
    100 at 0.9 (floating point) and 0 for 10 at 0.9; `truncate` gives that.

    Raises:
        UserError: no patch would be visible, or none masked.
    """
    num_keep = int(num_patches * (1 - mask_ratio)) if truncate else num_patches - int(num_patches * mask_ratio + 0.5)
    if not 0 < num_keep < num_patches:
        raise UserError(
            f"mask_ratio: {mask_ratio} keeps {num_keep} of {num_patches} patches; keep and mask at least one"
        )
    return num_keep


def random_masking(noise: Tensor, num_keep: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Select the patches with the lowest noise as the visible ones.

    Source: He et al. 2022, section 3 ("Simple implementation").

    Args:
        noise: (B, L) any real numbers; equal ones rank in order of the patches.
        num_keep: L_keep.

    Returns:
        ids_keep (B, L_keep) indices; ids_restore (B, L), which undoes the shuffle; mask (B, L) float, 1 = removed, in
        the image's order; shuffle (B, L), the patches by rising noise, of which ids_keep is the beginning.
    """
    shuffle = noise.argsort(dim=1, stable=True)
    ids_restore = shuffle.argsort(dim=1)
    return shuffle[:, :num_keep], ids_restore, (ids_restore >= num_keep).float(), shuffle


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and sqrt(variance + 1e-6) of each patch, (B, L, 1) each.

    They are over its n = P*P*C values; the variance is unbiased (n - 1).
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def masked_patch_loss(patches: Tensor, pred: Tensor, mask: Tensor, norm_pix: bool = True) -> Tensor:
    """Return the mean squared error over the masked patches of the batch; visible ones do not count.

    Args:
        patches: (B, L, P*P*C) true pixels, in the encoder's normalisation.
        pred: (B, L, P*P*C).
        mask: (B, L), 1 = removed.
        norm_pix: compare with each patch normalised by its own statistics (Table 1d).

    Returns:
        Scalar, at least float32. A prediction of zeros gives (n-1)/n * var/(var + 1e-6) with norm_pix, n = P*P*C.
    """
    dtype = torch.promote_types(patches.dtype, torch.float32)
    patches, pred, mask = patches.to(dtype), pred.to(dtype), mask.to(dtype)
    if norm_pix:
        mean, scale = patch_statistics(patches)
        patches = (patches - mean) / scale
    return (mask * (pred - patches).square().mean(dim=-1)).sum() / mask.sum()


MIN_TOKENS_FUSED = 128  # from here on the fused kernel's float32 path is faster on CPUs


def select_attention_kernel(module: nn.Module, device: str, dtype: torch.dtype, tokens: int) -> None:
    """Choose PyTorch's fused kernel or plain matrix products, whichever is faster, for timm's attention layers.

    Plain products are faster on CPUs in bfloat16, where the fused kernel's backward runs without AMX: forward +
    backward of 16 images took 114 ms instead of 208 ms in a decoder block of ViT-B (197 tokens, 16 heads), 14 ms
    instead of 69 ms in an encoder block (50 tokens, 12 heads). In float32 the fused kernel is faster with many tokens
    (120 ms against 169 ms there) and slower with few (18.4 against 17.0 ms; up to 15 % of a step of the small ViT for
    32 pixels).

    Args:
        module: the encoder or the decoder; its `fused_attn` flags change.
        device: type of the images' device, such as "cpu".
        dtype: that the layers compute in, which under autocast is not the images'.
        tokens: of each image.
    """
    fused = device != "cpu" or (tokens >= MIN_TOKENS_FUSED and dtype != torch.bfloat16)
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


class MAENetwork(nn.Module):
    """Plain ViT that encodes the visible patches of an image, and a decoder that predicts the pixels of the others.

    At the start the loss is about 1 + 2d / (d + P*P*3), 1.80 for the paper's decoder and 16-pixel patches.

    Args:
        h: hyper-parameters of `lit_vision.methods.mae.mae.MAE`, as its checkpoints hold them.

    Raises:
        UserError: a backbone that is no plain ViT, or a value that cannot work; the message names it and says what to
            do.
    """

    method_name, parts, train_view = "MAE", PARTS, TRAIN_VIEW

    def __init__(self, h: Mapping[str, Any]) -> None:
        super().__init__()
        self.hparams: Any = {**h, **DEFAULTS, **h}  # in the order of h; a LightningModule has its own
        self.build(self.hparams)

    def build(self, h: Mapping[str, Any]) -> None:
        """Make and initialise the parts."""
        width, heads = h["decoder_width"], h["decoder_heads"]
        if width % 4 or width % heads:
            raise UserError(f"decoder_width: {width} is not a multiple of 4 and of decoder_heads {heads}; change one")
        arguments = {"pool": "token", **(h["backbone_args"] or {})}
        self.backbone = Backbone(h["backbone"], **arguments)
        vit = self.backbone.model
        if not is_plain_vit(vit) or not isinstance(vit.norm, nn.LayerNorm):
            raise UserError(
                f"backbone: MAE needs a plain ViT with a final norm (pool token), not {h['backbone']}; "
                "use vit_base_patch16_224 or another vit_*_patch*_224"
            )
        self.patch_size, self.grid = vit.patch_embed.patch_size[0], tuple(vit.patch_embed.grid_size)
        self.num_patches = self.grid[0] * self.grid[1]
        self.num_keep = patches_kept(self.num_patches, h["mask_ratio"], h["truncate_keep"])
        self.norm_pix_loss = h["norm_pix_loss"]
        out = self.patch_size**2 * self.backbone.config["in_chans"]
        self.decoder = MAEDecoder(self.backbone.width, width, h["decoder_depth"], heads, self.grid, out)
        self.decoder.apply(init_weights)
        nn.init.normal_(self.decoder.mask_token, std=0.02)
        if not arguments.get("pretrained"):
            vit.apply(init_weights)
            nn.init.normal_(vit.cls_token, std=0.02)
            vit.pos_embed.data.copy_(sincos_2d(self.backbone.width, self.grid, cls_token=not vit.no_embed_class))
        vit.pos_embed.requires_grad_(False)
        vit.set_grad_checkpointing(h["checkpointing"])
        self.decoder.checkpointing = h["checkpointing"]
        self._attention_for: tuple[str, torch.dtype] | None = None
        channels, usual = (
            self.backbone.config["in_chans"],
            {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        )
        for name, values in usual.items():
            self.register_buffer(name, torch.tensor(channel_values(name, h[name], values, channels)))

    def forward(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, prediction and mask of one batch.

        Args:
            images: (B, C, H, W) float, normalised by `mean` and `std`.
            noise: (B, L), ranks the patches: the lowest are visible. None draws from torch's global generator.

        Returns:
            loss (scalar), pred (B, L, P*P*C) of all patches, mask (B, L) with 1 = removed.
        """
        if noise is None:
            noise = torch.rand(len(images), self.num_patches, device=images.device)
        self.choose_attention(images)
        pred, ids_restore, mask, _ = self._predict(images, noise, hidden_only=False)
        pred = pred.gather(1, ids_restore.unsqueeze(-1).expand_as(pred))  # to the image's order
        return masked_patch_loss(patchify(images, self.patch_size), pred, mask, self.norm_pix_loss), pred, mask

    def loss(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return the loss of `forward` without predictions for visible patches, which it does not need."""
        pred, _, _, shuffle = self._predict(images, noise, hidden_only=True)  # (B, L - L_keep, P*P*C)
        patches = patchify(images, self.patch_size).gather(1, shuffle[:, self.num_keep :, None].expand_as(pred))
        return masked_patch_loss(patches, pred, torch.ones_like(pred[..., 0]), self.norm_pix_loss)

    def _predict(self, images: Tensor, noise: Tensor, hidden_only: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return predictions in shuffled order, then ids_restore, mask and shuffle of `random_masking`."""
        ids_keep, ids_restore, mask, shuffle = random_masking(noise, self.num_keep)
        latent = self.backbone.forward_tokens(images, ids_keep)  # (B, 1 + L_keep, D)
        return self.decoder(latent, shuffle, hidden_only), ids_restore, mask, shuffle

    def choose_attention(self, images: Tensor) -> None:
        """Select the attention kernels for the device and dtype of these images; once, until one of them changes."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
        if self._attention_for != (images.device.type, dtype):
            self._attention_for = (images.device.type, dtype)
            select_attention_kernel(self.backbone, *self._attention_for, 1 + self.num_keep)
            select_attention_kernel(self.decoder, *self._attention_for, 1 + self.num_patches)
