"""GAN training: the networks of gan_network.py as a LightningModule with two optimizers that it steps itself."""

from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from lit_vision import optim
from lit_vision.data.batch import Batch, normalize_batch
from lit_vision.errors import UserError
from lit_vision.lightning_internals import ddp_finds_unused_parameters, leave_uncounted
from lit_vision.methods.generation.augment import KINDS
from lit_vision.methods.generation.gan_network import GANNetwork
from lit_vision.methods.generation.training import check_data_fits, one_view, store_class_names
from lit_vision.methods.hyper_parameters import keep_plain_hyper_parameters
from lit_vision.methods.keyed_noise import TRAIN


class GAN(GANNetwork, LightningModule):
    """Learn to make images from noise, with a discriminator that learns to tell them from real ones.

    Every batch is one step of the discriminator (hinge loss, every `r1_every`-th time the R1 penalty) and then one of
    the generator, each with its own optimizer. There is no number that says which weights are best, so a run has no
    best.ckpt, and `lit-vision generate` takes the last weights. On several processes `trainer.strategy` is
    `ddp_find_unused_parameters_true`, because each backward pass reaches one of the two networks.

    Args:
        img_size: side of the square images, pixels.
        channels: of the images, 1 or 3; `data.channels` must be the same.
        num_classes: K, to make images of a given class, in training those of the data; 0 learns without classes.
        noise_width: Z, numbers that an image is made from.
        width: channels of the generator's largest level, a multiple of 8.
        discriminator_width: likewise of the discriminator.
        multipliers: of both widths, one a level, from the largest side to the smallest; each has half the side.
        patch_size: pixels that the largest level sees as one place; 2 is four times less compute than 1.
        r1_gamma: weight of the R1 penalty gamma / 2 E|grad D|^2; 0 leaves it out.
        r1_every: batches from one penalty to the next, which then counts as many times.
        augmentation: of real and made images before the discriminator: some of color, translation, cutout.
        seed: of noise and augmentation; with a sample's key it determines them, on any number of processes.
        optimizer: adamw, adam, sgd, lars or lamb, of both networks.
        betas: of adam, adamw and lamb.
        momentum: of sgd and lars.
        lr: absolute learning rate of the generator.
        discriminator_lr: of the discriminator.
        min_lr: absolute learning rate of both at the end.
        weight_decay: of parameters with more than one dimension.
        warmup_epochs: linear warm-up, then `schedule`.
        schedule: cosine (to min_lr), or warmup-stable-decay: constant, then a decay that may begin at any step.
        decay_share: of all steps, the decay of warmup-stable-decay, between 0 and 1.

    Raises:
        UserError: a value that cannot work; the message names it.
    """

    def __init__(
        self,
        img_size: int = 32,
        channels: int = 3,
        num_classes: int = 0,
        noise_width: int = 64,
        width: int = 64,
        discriminator_width: int = 64,
        multipliers: tuple[int, ...] = (1, 2, 4),
        patch_size: int = 1,
        r1_gamma: float = 0.1,
        r1_every: int = 16,
        augmentation: tuple[str, ...] = KINDS,
        seed: int = 0,
        optimizer: str = "adam",
        betas: tuple[float, float] = (0.0, 0.9),
        momentum: float = 0.9,
        lr: float = 2e-4,
        discriminator_lr: float = 4e-4,
        min_lr: float = 0.0,
        weight_decay: float = 0.0,
        warmup_epochs: float = 0,
        schedule: optim.Schedule = "cosine",
        decay_share: float = 0.2,
    ) -> None:
        super(GANNetwork, self).__init__()  # LightningModule's: the networks need the hyper-parameters first
        self.save_hyperparameters()
        keep_plain_hyper_parameters(self)
        if r1_every < 1:
            raise UserError(f"model.r1_every: {r1_every}; give 1 or more")
        self.automatic_optimization = False
        self.build(self.hparams)

    on_save_checkpoint = store_class_names

    def setup(self, stage: str) -> None:
        """Refuse data that does not fit, and a strategy for several processes that would stop in the second step."""
        check_data_fits(self, stage)
        if stage == "fit":
            self.trainer.limit_val_batches = 0  # nothing is measured on validation images
        if stage == "fit" and self.trainer.world_size > 1 and not ddp_finds_unused_parameters(self.trainer.strategy):
            raise UserError(
                "trainer.strategy: a GAN on several processes needs ddp_find_unused_parameters_true, since each "
                "backward pass reaches one of its two networks; set that"
            )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn pixels into normalised floats in [-1, 1], (B, V, C, H, W), on the device."""
        return normalize_batch(batch, self.mean, self.std)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take a step of the discriminator and one of the generator; logs both losses and the penalty (0 without)."""
        images, labels, keys = one_view(batch, TRAIN)
        of_discriminator, of_generator = self.optimizers()
        leave_uncounted(of_discriminator)
        h = self.hparams
        weight = h.r1_gamma * h.r1_every if self.global_step % h.r1_every == 0 else 0.0

        self.toggle_optimizer(of_discriminator)
        hinge, penalty = self.discriminator_loss(images, labels, keys, weight)
        self._step(of_discriminator, hinge + penalty)

        self.toggle_optimizer(of_generator)
        loss = self.generator_loss(labels, keys)
        self._step(of_generator, loss)

        for schedule in self.lr_schedulers():
            schedule.step()
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/discriminator_loss", hinge, prog_bar=True)
        # in every step, as Lightning writes a value that was logged before into the rows after it too
        self.log("train/r1", penalty / h.r1_every)

    def _step(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        optimizer.zero_grad()  # no gradient is left for the other network's step, or for a checkpoint
        self.untoggle_optimizer(optimizer)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Do nothing: neither network's loss says how good the images are (`make table-generation` measures them)."""

    def configure_optimizers(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return optimizer and per-step schedule of the discriminator and of the generator."""
        h = self.hparams
        names = ("optimizer", "betas", "momentum", "min_lr", "warmup_epochs", "schedule", "decay_share")
        shared = {name: h[name] for name in names}
        discriminator, generator = (
            optim.optimizer_and_schedule(
                self, optim.decay_groups(part.named_parameters(), h.weight_decay), base_lr=None, lr=lr, **shared
            )
            for part, lr in ((self.discriminator, h.discriminator_lr), (self.generator, h.lr))
        )
        return discriminator, generator
