"""Masked autoencoder (MAE): hide most patches of an image and predict their pixels. He et al. 2022, arXiv:2111.06377.

B images, C H W channels and pixels, P patch side, L patches, D encoder width, d decoder width.
"""

from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from lit_vision import optim
from lit_vision.backbones.backbone import Backbone, is_plain_vit
from lit_vision.backbones.pos_embed import sincos_2d
from lit_vision.data.batch import normalize_batch
from lit_vision.errors import UserError
from lit_vision.methods.keyed_noise import PICTURES, TRAIN, VALIDATION, keyed_noise
from lit_vision.methods.mae.decoder import MAEDecoder, init_weights, select_attention_kernel


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


def random_masking(noise: Tensor, num_keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Select the patches with the lowest noise as the visible ones.

    Source: He et al. 2022, section 3 ("Simple implementation").

    Args:
        noise: (B, L) any real numbers; equal ones rank in order of the patches.
        num_keep: L_keep.

    Returns:
        ids_keep (B, L_keep) indices, ids_restore (B, L) that undoes the shuffle, mask (B, L) float: 1 = removed, in the
        image's order.
    """
    shuffle = noise.argsort(dim=1, stable=True)
    ids_restore = shuffle.argsort(dim=1)
    return shuffle[:, :num_keep], ids_restore, (ids_restore >= num_keep).float()


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


class MAE(lightning.LightningModule):
    """Pre-train a plain ViT by predicting masked patches.

    The paper's recipe: mask 0.75, batch 4096, AdamW (0.9, 0.95), 800 to 1600 epochs, 40 of warm-up; released encoders
    have norm_pix_loss. At the start the loss is about 1 + 2d / (d + P*P*3), 1.80 for the paper's decoder and 16-pixel
    patches.

    Args:
        backbone: timm name of a plain ViT (a cls token, no registers).
        backbone_args: further arguments of Backbone; img_size and patch_size set the grid.
        decoder_width: d.
        decoder_depth: blocks of the decoder.
        decoder_heads: its attention heads.
        mask_ratio: fraction of patches that is hidden, in (0, 1); see `patches_kept`.
        truncate_keep: compute the number of visible patches as the official code does, by truncation.
        norm_pix_loss: predict pixels normalised per patch.
        compile: torch.compile the training step (CPU: needs a C++ compiler; one to three minutes at the first step).
            Not run on a GPU yet.
        checkpointing: activation checkpointing: a third more compute, and only each block's input is stored for
            backward.
        seed: of the masks; with a sample's key it determines the sample's mask, on any number of processes.
        mean: of the pixels, per channel, in [0, 1]; None is ImageNet's.
        std: of the pixels, per channel; None is ImageNet's.
        optimizer: adamw, adam, sgd, lars or lamb.
        betas: of adam, adamw and lamb.
        momentum: of sgd and lars.
        base_lr: learning rate per 256 images.
        lr: absolute learning rate; if given, base_lr is not used.
        min_lr: absolute learning rate at the end.
        weight_decay: of parameters with more than one dimension. As in the official pre-training (not as in
            fine-tuning), cls_token and mask_token are decayed too; positions are fixed and in no group.
        warmup_epochs: linear warm-up, then a cosine to min_lr.

    Raises:
        UserError: a backbone that is no plain ViT, or a value that cannot work; the message names it and says what to
            do.
    """

    def __init__(
        self,
        backbone: str = "vit_base_patch16_224",
        backbone_args: dict[str, Any] | None = None,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        mask_ratio: float = 0.75,
        truncate_keep: bool = False,
        norm_pix_loss: bool = True,
        compile: bool = False,
        checkpointing: bool = False,
        seed: int = 0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        optimizer: str = "adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        momentum: float = 0.9,
        base_lr: float | None = 1.5e-4,
        lr: float | None = None,
        min_lr: float = 0.0,
        weight_decay: float = 0.05,
        warmup_epochs: float = 40,
    ) -> None:
        super().__init__()
        if decoder_width % 4 or decoder_width % decoder_heads:
            raise UserError(
                f"decoder_width: {decoder_width} is not a multiple of 4 and of decoder_heads {decoder_heads}; "
                "change one of them"
            )
        self.save_hyperparameters()
        arguments = {"pool": "token", **(backbone_args or {})}
        self.backbone = Backbone(backbone, **arguments)
        vit = self.backbone.model
        if not is_plain_vit(vit) or not isinstance(vit.norm, nn.LayerNorm):
            raise UserError(
                f"backbone: MAE needs a plain ViT with a final norm (pool token), not {backbone}; "
                "use vit_base_patch16_224 or another vit_*_patch*_224"
            )
        self.patch_size, self.grid = vit.patch_embed.patch_size[0], tuple(vit.patch_embed.grid_size)
        self.num_patches = self.grid[0] * self.grid[1]
        self.num_keep = patches_kept(self.num_patches, mask_ratio, truncate_keep)
        out = self.patch_size**2 * self.backbone.config["in_chans"]
        self.decoder = MAEDecoder(self.backbone.width, decoder_width, decoder_depth, decoder_heads, self.grid, out)
        self.decoder.apply(init_weights)
        nn.init.normal_(self.decoder.mask_token, std=0.02)
        if not arguments.get("pretrained"):
            vit.apply(init_weights)
            nn.init.normal_(vit.cls_token, std=0.02)
            vit.pos_embed.data.copy_(sincos_2d(self.backbone.width, self.grid, cls_token=not vit.no_embed_class))
        vit.pos_embed.requires_grad_(False)
        vit.set_grad_checkpointing(checkpointing)
        self.decoder.checkpointing = checkpointing
        self._compiled: Callable[[Tensor, Tensor], Tensor] | None = None
        self.register_buffer("mean", torch.tensor(mean or [0.485, 0.456, 0.406]))
        self.register_buffer("std", torch.tensor(std or [0.229, 0.224, 0.225]))

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
        ids_keep, ids_restore, mask = random_masking(noise, self.num_keep)
        self._choose_attention(images)
        latent = self.backbone.forward_tokens(images, ids_keep)  # (B, 1 + L_keep, D)
        pred = self.decoder(latent, ids_restore.argsort(dim=1))  # (B, L, P*P*C), shuffled
        pred = pred.gather(1, ids_restore.unsqueeze(-1).expand_as(pred))
        loss = masked_patch_loss(patchify(images, self.patch_size), pred, mask, self.hparams.norm_pix_loss)
        return loss, pred, mask

    def loss(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return the loss of `forward` without predictions for visible patches, which it does not need."""
        ids_keep, ids_restore, _ = random_masking(noise, self.num_keep)
        shuffle = ids_restore.argsort(dim=1)
        latent = self.backbone.forward_tokens(images, ids_keep)
        pred = self.decoder(latent, shuffle, hidden_only=True)  # (B, L - L_keep, P*P*C)
        patches = patchify(images, self.patch_size).gather(1, shuffle[:, self.num_keep :, None].expand_as(pred))
        return masked_patch_loss(patches, pred, torch.ones_like(pred[..., 0]), self.hparams.norm_pix_loss)

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Turn pixels into normalised floats, (B, V, C, H, W), on the device."""
        return normalize_batch(batch, self.mean, self.std)

    def batch_loss(self, batch: dict[str, Tensor], stream: int) -> Tensor:
        """Return the loss of a batch with masks from its keys; each of its V views has another mask."""
        images, keys = batch["images"], batch["key"]  # (B, V, C, H, W), (B, 3)
        views = torch.arange(images.shape[1], device=keys.device).repeat(len(keys))[:, None]
        keys = torch.cat([keys.repeat_interleave(images.shape[1], dim=0), views], dim=1)  # (B*V, 4)
        images = images.flatten(0, 1)
        self._choose_attention(images)
        return self._step()(images, keyed_noise(keys, self.num_patches, self.hparams.seed, stream))

    def _choose_attention(self, images: Tensor) -> None:
        select_attention_kernel(self.backbone, images, 1 + self.num_keep)
        select_attention_kernel(self.decoder, images, 1 + self.num_patches)

    def _step(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return `loss`, compiled at first use if `compile` is set; no module, so that state keys do not change."""
        if not self.hparams.compile:
            return self.loss
        if self._compiled is None:
            self._compiled = torch.compile(self.loss)
        return self._compiled

    def __getstate__(self) -> dict[str, Any]:
        """Leave compiled code out of copies and worker processes."""
        return {**super().__getstate__(), "_compiled": None}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch; logs train/loss (of this process: a mean over all would wait at each step)."""
        loss = self.batch_loss(batch, TRAIN)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log val/loss, with the same mask for a sample in every epoch."""
        self.log("val/loss", self.batch_loss(batch, VALIDATION), batch_size=len(batch["images"]), sync_dist=True)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return pictures: the original, its visible patches (the others gray), and the prediction for the others.

        With norm_pix_loss the prediction has no brightness and contrast: those of the true patch are used.

        Args:
            images: (B, C, H, W) float, normalised.
            noise: (B, L) as in `forward`; None is the same mask for row i at every call.

        Returns:
            Three (B, H, W, C) uint8 tensors.
        """
        if noise is None:
            noise = keyed_noise(torch.arange(len(images), device=images.device)[:, None], self.num_patches, 0, PICTURES)
        _, pred, mask = self(images, noise)
        patches, mask = patchify(images, self.patch_size), mask.unsqueeze(-1).bool()
        pred = pred.to(patches.dtype)
        if self.hparams.norm_pix_loss:
            mean, scale = patch_statistics(patches)
            pred = pred * scale + mean
        gray = patchify(((0.5 - self.mean) / self.std)[:, None, None].expand_as(images), self.patch_size)
        panels = (patches, gray.where(mask, patches), pred.where(mask, patches))
        return tuple(self._to_uint8(unpatchify(panel, self.patch_size, self.grid)) for panel in panels)

    def _to_uint8(self, images: Tensor) -> Tensor:
        pixels = images * self.std[:, None, None] + self.mean[:, None, None]
        return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def configure_optimizers(self) -> dict[str, Any]:
        """Return optimizer and per-step schedule; see `lit_vision.optim.optimizer_and_schedule`."""
        decay = self.hparams.weight_decay
        groups = optim.decay_groups(self.named_parameters(), decay, no_decay=lambda name, p: p.ndim <= 1)
        return optim.optimizer_from_hparams(self, groups)
