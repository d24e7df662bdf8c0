"""SimCLR: contrastive pre-training with two views of each image. Chen et al. 2020, arXiv:2002.05709.

B images, V = 2 views, D width of a vector, C H W channels and pixels.
"""

from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from lit_vision import distributed, optim
from lit_vision.backbones.backbone import Backbone
from lit_vision.data.batch import normalize_batch
from lit_vision.errors import UserError
from lit_vision.lightning_internals import log_at_optimizer_step
from lit_vision.methods.simclr.nt_xent import nt_xent


class ProjectionHead(nn.Sequential):
    """Projection head g(h): the layers between the representation and the loss, not used after pre-training.

    Without batch norm: linear maps with biases and ReLU between them (the paper: 2 layers, 2048-2048-128, 4,458,624
    parameters). With it: linear maps without bias, each followed by batch norm, ReLU after the hidden ones; the last
    norm has a gain and no bias (the official code's default, SimCLR v2, 3 layers). Source: arXiv:2002.05709, section
    4.2; google-research/simclr model_util.py.

    Input (B, in_width), output (B, out_width), float.

    Args:
        in_width: D of the backbone; also the hidden layers' width.
        out_width: D of the projection.
        layers: 1 to 3.
        batch_norm: as above.

    Raises:
        UserError: layers is not 1, 2 or 3.
    """

    def __init__(self, in_width: int, out_width: int = 128, layers: int = 2, batch_norm: bool = False) -> None:
        if layers not in (1, 2, 3):
            raise UserError(f"projection_layers: {layers} is not 1, 2 or 3; the paper has 2, SimCLR v2 has 3")
        modules: list[nn.Module] = []
        for i in range(layers):
            last = i == layers - 1
            width = out_width if last else in_width
            modules.append(nn.Linear(in_width, width, bias=not batch_norm))
            if batch_norm:
                modules.append(nn.BatchNorm1d(width))
                if last:
                    modules[-1].register_parameter("bias", None)
            if not last:
                modules.append(nn.ReLU())
        super().__init__(*modules)


class SimCLR(L.LightningModule):
    """Pre-train a backbone by contrasting two views of each image.

    Needs a train view with V = 2 (`train_view: simclr`). Both views pass the backbone in one batch of 2B images, so
    batch norm sees both. The paper's recipe: LARS, base_lr 0.3, weight_decay 1e-6, 10 warm-up epochs, batch norm over
    all processes (`trainer.sync_batchnorm: true` in a recipe, `lit_vision.distributed.global_batch_norm` in Python),
    batch 4096.

    Args:
        backbone: a timm model name.
        backbone_args: further arguments of Backbone.
        projection_width: D of the vectors that the loss compares.
        projection_layers: 1 to 3 (2 in the paper, 3 in SimCLR v2).
        projection_batch_norm: batch norm in the head, as in SimCLR v2 and the official code.
        temperature: t of the loss; the paper: 0.1 on ImageNet, 0.5 on CIFAR.
        negatives: "global", those of all processes; "local", those of the same process only (fewer with every process;
            not the paper).
        mean: of the pixels, per channel, in [0, 1]. The official code does not normalise: 0.
        std: of the pixels, per channel. 1.
        optimizer: adamw, adam, sgd, lars or lamb.
        betas: of adam, adamw and lamb.
        momentum: of sgd and lars.
        base_lr: learning rate per 256 images.
        lr: absolute learning rate; if given, base_lr is not used.
        weight_decay: of parameters with more than one dimension. The paper and the official TF2 code: 1e-6 (TF1's
            default: 1e-4).
        warmup_epochs: linear warm-up, then a cosine to 0.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        backbone_args: dict[str, Any] | None = None,
        projection_width: int = 128,
        projection_layers: int = 2,
        projection_batch_norm: bool = False,
        temperature: float = 0.1,
        negatives: Literal["global", "local"] = "global",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        optimizer: str = "lars",
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.9,
        base_lr: float | None = 0.3,
        lr: float | None = None,
        weight_decay: float = 1e-6,
        warmup_epochs: float = 10,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise UserError(
                f"temperature: {temperature} is not positive; the paper has 0.1 on ImageNet and 0.5 on CIFAR"
            )
        if negatives not in ("global", "local"):
            raise UserError(f"negatives: {negatives!r} is not 'global' or 'local'; the paper's are global")
        self.save_hyperparameters()
        self.backbone = Backbone(backbone, **(backbone_args or {}))
        self.projection = ProjectionHead(
            self.backbone.width, projection_width, projection_layers, projection_batch_norm
        )
        self.temperature = temperature
        self.register_buffer("mean", torch.tensor(mean or [0.0, 0.0, 0.0]))
        self.register_buffer("std", torch.tensor(std or [1.0, 1.0, 1.0]))

    def forward(self, images: Tensor) -> Tensor:
        """Return projections z (B, projection_width) of normalised images (B, C, H, W)."""
        return self.projection(self.backbone(images))

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Turn pixels into normalised floats, (B, V, C, H, W), on the device."""
        return normalize_batch(batch, self.mean, self.std)

    def loss(self, views: Tensor) -> Tensor:
        """Return the NT-Xent loss of a batch of view pairs, normalised (B, 2, C, H, W); scalar, see `nt_xent`."""
        if views.ndim != 5 or views.shape[1] != 2:
            raise UserError(
                f"data.train_view: SimCLR needs two views of each image, got {views.shape[1]}; set it to simclr"
            )
        z = self(views.flatten(0, 1)).unflatten(0, (-1, 2))  # (2B, D) -> (B, 2, D)
        return nt_xent(z[:, 0], z[:, 1], self.temperature, self.hparams.negatives)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch; logs train/loss: of all processes, with local negatives of this one."""
        loss = self.loss(batch["images"])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log val/loss if the evaluation view has two views; online k-NN measures the features otherwise."""
        if batch["images"].shape[1] == 2:
            self.log("val/loss", self.loss(batch["images"]), batch_size=len(batch["images"]), sync_dist=True)

    def setup(self, stage: str) -> None:
        """Refuse settings that would train another model than asked for; skip a validation without two views."""
        distributed.batch_norm_scope(self)
        if self.hparams.negatives == "global" and self.trainer.world_size != distributed.world_size():
            raise UserError(
                f"trainer.strategy: {self.trainer.world_size} processes that do not exchange tensors would each see "
                "local negatives only; use ddp, or set model.negatives=local"
            )
        if stage == "fit" and getattr(getattr(self.trainer, "datamodule", None), "eval_view", "simclr") != "simclr":
            self.trainer.limit_val_batches = 0

    def on_train_start(self) -> None:
        """Print the number of negatives per anchor and the scope of batch norm; refuse a batch without negatives."""
        # micro-batches do not see each other: accumulation adds no negatives
        images = optim.training_length(self).global_batch_size // self.trainer.accumulate_grad_batches
        world, scope = self.trainer.world_size, self.hparams.negatives
        negatives = 2 * (images if scope == "global" else images // world) - 2
        if negatives < 1:
            raise UserError(
                "data.batch_size: one image a step leaves no negatives; set it to 2 or more (the paper: 4096 in all)"
            )
        if self.trainer.is_global_zero:
            print(
                f"SimCLR: each anchor sees {negatives} negatives, {scope} ({images} images over {world} process(es))",
                flush=True,
            )
            if distributed.batch_norm_scope(self) == "per process":
                print(
                    "SimCLR: batch norm sees one process's images only; "
                    "trainer.sync_batchnorm makes it global as in the paper",
                    flush=True,
                )
        if self.global_step == 0:
            log_at_optimizer_step(self.trainer, {"train/negatives": negatives})

    def configure_optimizers(self) -> dict[str, Any]:
        """Return optimizer and per-step schedule; see `lit_vision.optim.optimizer_and_schedule`."""
        groups = optim.decay_groups(self.named_parameters(), self.hparams.weight_decay)
        return optim.optimizer_from_hparams(self, groups)
