"""Restorer training: the network of network.py as a LightningModule."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_vision import distributed, optim
from lit_vision.data.batch import Batch, normalize_batch
from lit_vision.errors import UserError
from lit_vision.evaluation.restoration import open_lpips, psnr_of, restoration_values
from lit_vision.methods import fine_tuning
from lit_vision.methods.hyper_parameters import keep_plain_hyper_parameters
from lit_vision.methods.keyed_noise import TRAIN, VALIDATION
from lit_vision.methods.restoration.degradations import degrade
from lit_vision.methods.restoration.network import TILE, RestorerNetwork, pixel_loss


class Restorer(RestorerNetwork, LightningModule):
    """Learn to undo degradations of images: noise, blur, holes, missing color, JPEG artifacts, down-sampling.

    Data: crops in the pixels of the file (`train_view: crop`, `eval_view: crop`), which are the clean images. What
    `degradations` lists is drawn on the device from each sample's key; JPEG artifacts and down-sampling come from the
    data module (`data.degraded`), before them. Training and validation see images of 256 levels, as files have them.

    Args:
        degradations: applied in order; each a name and a number, or two for a range: gaussian_noise (standard
            deviation in gray levels), poisson_noise (photons of a white pixel), gaussian_blur (sigma in pixels),
            rectangle_holes and stroke_holes (share of the pixels), gray (no number). May be empty with data.degraded.
        backbone: dncnn (Zhang et al. 2017, arXiv:1608.03981), or a timm model name, whose maps a decoder joins.
        backbone_args: of dncnn: depth, width, batch_norm; else further arguments of Backbone.
        backbone_checkpoint: a file whose encoder is loaded; the report is printed. Not for dncnn.
        scale: 1, or 2, 3, 4 with `data.degraded: [downsample ...]` by that factor.
        decoder_width: channels of the decoder of a timm backbone.
        loss: l1, charbonnier or mse; of pixels in [0, 1], averaged.
        lpips: alex, vgg or squeeze also logs test/lpips by torchmetrics, where torchvision's weights of that network
            are in torch's cache.
        seed: of the degradations; with a sample's key it determines them, on any number of processes.
        mean: of the pixels, per channel, in [0, 1]; None is that of the loaded weights, 0.5 for dncnn.
        std: of the pixels, per channel; None is that of the loaded weights, 0.25 for dncnn.
        optimizer: adamw, adam, sgd, lars or lamb.
        betas: of adam, adamw and lamb.
        momentum: of sgd and lars.
        base_lr: learning rate per 256 images; used if lr is None.
        lr: absolute learning rate.
        min_lr: absolute learning rate at the end.
        weight_decay: of parameters with more than one dimension.
        warmup_epochs: linear warm-up, then `schedule`.
        schedule: cosine (to min_lr), or warmup-stable-decay: constant, then a decay that may begin at any step.
        decay_share: of all steps, the decay of warmup-stable-decay, between 0 and 1.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do. PartialMatchError (a UserError):
            the checkpoint does not fit.
    """

    def __init__(
        self,
        degradations: list[str],
        backbone: str = "dncnn",
        backbone_args: dict[str, Any] | None = None,
        backbone_checkpoint: str | None = None,
        scale: int = 1,
        decoder_width: int = 32,
        loss: str = "charbonnier",
        lpips: str | None = None,
        seed: int = 0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        optimizer: str = "adam",
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.9,
        base_lr: float | None = None,
        lr: float | None = 1e-3,
        min_lr: float = 0.0,
        weight_decay: float = 0.0,
        warmup_epochs: float = 0.0,
        schedule: optim.Schedule = "cosine",
        decay_share: float = 0.2,
    ) -> None:
        super(RestorerNetwork, self).__init__()  # LightningModule's: the network needs the hyper-parameters first
        self.save_hyperparameters()
        keep_plain_hyper_parameters(self)
        self.build(self.hparams)
        self.metadata: dict[str, Any] | None = None
        self._lpips: list[nn.Module] = []  # in a list: its weights are no part of the model's

    def setup(self, stage: str) -> None:
        """Refuse data that does not fit the model, before any step."""
        distributed.batch_norm_scope(self)
        data = getattr(self.trainer, "datamodule", None)
        theirs = getattr(data, "channels", self.channels)
        if theirs != self.channels:
            raise UserError(f"model.backbone_args.in_chans: {self.channels}, the data has {theirs} channel(s)")
        if data is not None and (factor := getattr(data, "factor", 1)) != self.scale:
            raise UserError(
                f"model.scale: {self.scale}, the data is down-sampled by {factor}; set it to {factor}, or "
                f"data.degraded to [downsample {self.scale}]"
            )
        if self.hparams.lpips:
            self._lpips = [open_lpips(self.hparams.lpips)]
        if not self.degradations and not getattr(data, "degraded", ()):
            raise UserError("model.degradations: empty, and so is data.degraded; name what is to be undone")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn pixels into normalised floats, (B, V, C, H, W), on the device."""
        return normalize_batch(batch, self.mean, self.std)

    def degraded(self, batch: Batch, stream: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the network's input, its holes and the clean images of a batch, one row a view.

        Args:
            batch: normalized.
            stream: TRAIN or VALIDATION, which draw different numbers.

        Returns:
            (B * V, C, h, w) normalized; (B * V, 1, h, w) or None; (B * V, C, H, W) pixels in [0, 1].
        """
        images, keys = batch["images"], batch["key"]
        source = batch.get("degraded", images)
        views = torch.arange(images.shape[1], device=keys.device).repeat(len(keys))[:, None]
        keys = torch.cat([keys.repeat_interleave(images.shape[1], dim=0), views], dim=1)  # (B * V, 4)
        pixels = self.to_pixels(source.flatten(0, 1)).float()
        with torch.autocast(pixels.device.type, enabled=False):
            pixels, holes = degrade(pixels, keys, self.degradations, self.hparams.seed, stream)
        inputs = (pixels - self.mean[:, None, None]) / self.std[:, None, None]
        return inputs, holes, self.to_pixels(images.flatten(0, 1))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch; logs train/loss."""
        inputs, holes, clean = self.degraded(batch, TRAIN)
        loss = pixel_loss(self.to_pixels(self(inputs, holes)), clean, self.hparams.loss)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _evaluate(self, batch: Batch, split: str) -> None:
        inputs, holes, clean = self.degraded(batch, VALIDATION)
        restored = self.to_pixels(self(inputs, holes))
        values = {name: v.mean() for name, v in restoration_values(restored, clean, self._border).items()}
        before = psnr_of(self.to_pixels(self.enlarged(inputs)), clean, self._border)
        values["gain_rgb"] = (psnr_of(restored, clean, self._border) - before).mean()
        values["loss"] = pixel_loss(restored, clean, self.hparams.loss)
        if self._lpips and split == "test":
            rgb = [x.float().clamp(0, 1).expand(-1, 3, -1, -1) for x in (restored, clean)]
            values["lpips"] = self._lpips[0].to(self.device)(*rgb)
        for name, value in values.items():
            self.log(
                f"{split}/{name}",
                value.float(),
                prog_bar=name == "psnr_rgb",
                batch_size=len(batch["images"]),
                sync_dist=True,
            )

    @property
    def _border(self) -> int:
        """Pixels on each side that PSNR and SSIM leave out: the factor in super-resolution, as papers do."""
        return self.scale if self.scale > 1 else 0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log val/psnr_rgb, val/psnr_y (dB), val/ssim_rgb, val/ssim_y, val/loss and val/gain_rgb.

        The last is PSNR above that of the input (enlarged by bicubic interpolation), dB; 0 of a network whose units
        died. The degradations of an image are the same each time.
        """
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Do as `validation_step`, under test/, with test/lpips if it was asked for."""
        self._evaluate(batch, "test")

    def on_fit_start(self) -> None:
        """Store what using the model takes."""
        data = getattr(self.trainer, "datamodule", None)
        self.metadata = {
            "task": "restoration",
            "size": self.fixed_size or TILE,
            "options": {"degraded": list(getattr(data, "degraded", ())), "degradations": self.hparams.degradations},
        }
        if value_range := getattr(data, "value_range", None):
            self.metadata["value_range"] = [float(v) for v in value_range]

    # hooks that all supervised methods share
    on_save_checkpoint = fine_tuning.make_checkpoint_self_contained
    on_load_checkpoint = fine_tuning.restore_metadata

    def configure_optimizers(self) -> dict[str, Any]:
        """Return optimizer and per-step schedule; see `lit_vision.optim.optimizer_and_schedule`."""
        parameters = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        return optim.optimizer_from_hparams(self, optim.decay_groups(parameters, self.hparams.weight_decay))
