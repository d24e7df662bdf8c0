"""Video classifier training: the network of network.py as a LightningModule.

B videos, V clips of a video, T frames, K classes, C H W channels and pixels.
"""

from typing import Any

import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_vision import distributed, optim
from lit_vision.backbones import adapters
from lit_vision.data.batch import Batch, normalize_batch
from lit_vision.errors import UserError
from lit_vision.evaluation.mean_recall import MeanClassRecall
from lit_vision.methods import fine_tuning
from lit_vision.methods.classifier.network import classification_loss, soft_targets
from lit_vision.methods.hyper_parameters import keep_plain_hyper_parameters
from lit_vision.methods.pixels import check_channels
from lit_vision.methods.video_classifier.network import VideoClassifierNetwork, video_log_probabilities
from lit_vision.weights.model_metadata import metadata_from_datamodule

# settings of the data that say which frames are a clip, kept with the model so that prediction cuts videos alike
CLIP_SETTINGS = ("frames_per_clip", "frame_stride", "fps", "sampling", "clips_per_video", "frames_per_second")


class VideoClassifier(VideoClassifierNetwork, LightningModule):
    """Image backbone on every frame of a clip, the frames joined over time, and a linear head, trained on labels.

    The data gives clips, (B, V, T, C, H, W): one a sample in training, in evaluation V clips of each video
    (VideoFolderDataModule, data.clips_per_video), whose probabilities are averaged: all metrics count videos.

    Args:
        backbone: a timm model name.
        num_classes: K, 2 or more; must be the data's.
        temporal: mean of the frames' features, blind to their order; lstm: the last state of an LSTM over them;
            attention: a transformer block over them; tsm: channels shifted between neighboring frames in the residual
            blocks of the backbone (arXiv:1811.08383; ResNets, MobileNets, EfficientNets, ViTs), then the mean.
        temporal_width: W, of lstm's state or attention's block.
        temporal_heads: of attention.
        dropout: of the clip's features before the head, in [0, 1).
        backbone_args: further arguments of Backbone.
        backbone_checkpoint: a file whose encoder is loaded, of images or of videos (any layout of
            `lit_vision.weights.load`); the report is printed.
        tune: the parameters that train in addition to the head and the joining of the frames: full, linear (none: the
            backbone is frozen), head+norm, bias, last-<k> (blocks), lora, prompt-shallow, prompt-deep.
        layer_decay: factor on the learning rate per layer from the head down, in (0, 1].
        label_smoothing: e, in [0, 1); in training only.
        freeze_batch_norm: keep the statistics of the backbone's batch norms as they are loaded, whatever trains: the
            frames of a clip are alike, so a batch of few clips has no good ones.
        mean: of the pixels, per channel, in [0, 1]; None is that of the loaded weights.
        std: of the pixels, per channel; None is that of the loaded weights.
        optimizer: adamw, adam, sgd, lars or lamb.
        betas: of adam, adamw and lamb.
        momentum: of sgd and lars.
        nesterov: of sgd.
        base_lr: learning rate per 256 clips.
        lr: absolute learning rate; if given, base_lr is not used.
        min_lr: absolute learning rate at the end.
        weight_decay: of parameters with more than one dimension, except tokens and positions.
        warmup_epochs: linear warm-up, then `schedule`.
        schedule: cosine (to min_lr), or warmup-stable-decay: constant, then a decay that may begin at any step.
        decay_share: of all steps, the decay of warmup-stable-decay, between 0 and 1.
        lora_rank: r of tune=lora.
        lora_alpha: the update is scaled by lora_alpha / lora_rank.
        lora_targets: some of qkv, proj, mlp, or endings of layers' names.
        lora_layers: first and last block that is adapted, from 0; None is all.
        lora_dropout: on the update's input.
        prompt_length: tokens of tune=prompt-shallow, or per block of prompt-deep.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do. PartialMatchError (a UserError):
            the checkpoint does not fit.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        temporal: str = "mean",
        temporal_width: int = 256,
        temporal_heads: int = 4,
        dropout: float = 0.0,
        backbone_args: dict[str, Any] | None = None,
        backbone_checkpoint: str | None = None,
        tune: str = "full",
        layer_decay: float = 1.0,
        label_smoothing: float = 0.0,
        freeze_batch_norm: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        optimizer: str = "adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.9,
        nesterov: bool = False,
        base_lr: float | None = 1e-3,
        lr: float | None = None,
        min_lr: float = 0.0,
        weight_decay: float = 0.05,
        warmup_epochs: float = 5,
        schedule: optim.Schedule = "cosine",
        decay_share: float = 0.2,
        lora_rank: int = 8,
        lora_alpha: float = 8.0,
        lora_targets: list[str] | None = None,
        lora_layers: list[int] | None = None,
        lora_dropout: float = 0.0,
        prompt_length: int = 50,
    ) -> None:
        super(VideoClassifierNetwork, self).__init__()  # LightningModule's, before the network
        self.save_hyperparameters()
        keep_plain_hyper_parameters(self)
        self.build(self.hparams)
        names = ("loss", "top1", "top5") if num_classes >= 5 else ("loss", "top1")
        self.metrics = nn.ModuleDict({f"{split}_{name}": MeanMetric() for split in ("val", "test") for name in names})
        self.metrics["test_mean_per_class"] = MeanClassRecall(num_classes)
        self.metadata: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Refuse data with other classes or channels, and a batch-norm converter that would break the model."""
        fine_tuning.check_batch_norm(self)
        check_channels(self)
        fine_tuning.match_classes(self, new_training=stage == "fit")
        fine_tuning.check_number_of_classes(self)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Refuse labels outside [0, K), while the batch is still on the CPU."""
        fine_tuning.check_labels(batch["label"], self.hparams.num_classes, "video")
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn pixels into normalised floats, (B, V, T, C, H, W), on the device."""
        return normalize_batch(batch, self.mean, self.std, clips=True)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch; logs train/loss."""
        if batch["images"].shape[1] != 1:
            raise UserError(f"data.train_view: training needs one view of each clip, got {batch['images'].shape[1]}")
        targets = soft_targets(batch["label"], self.hparams.num_classes, self.hparams.label_smoothing)
        loss = classification_loss(self(batch["images"][:, 0]), targets)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _evaluate(self, batch: Batch, split: str) -> None:
        labels, clips = batch["label"], batch["images"]
        logits = self(clips.flatten(0, 1)).unflatten(0, (-1, clips.shape[1]))  # (B, V, K)
        log_p = video_log_probabilities(logits)
        fine_tuning.log_classification(self, split, F.nll_loss(log_p, labels), log_p, labels)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log val/loss (unsmoothed), val/top1 and, with 5 classes or more, val/top5 of videos, over all processes."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the same under test/, and test/mean_per_class, the mean recall of the classes that occur."""
        self._evaluate(batch, "test")

    def on_fit_start(self) -> None:
        """Store class names, image size, crop and the clips' frames, which prediction needs."""
        self.metadata = _metadata(self.trainer.datamodule) or self.metadata

    def on_train_start(self) -> None:
        """Print how many parameters train, and a note if batch norm sees one process's clips only."""
        if self.trainer.is_global_zero and self.hparams.tune != "full":
            print(f"VideoClassifier: {adapters.describe_trainable(self)}", flush=True)
        if (
            self.trainer.is_global_zero
            and self.hparams.tune in ("full", "head+norm")
            and not self.hparams.freeze_batch_norm
            and distributed.batch_norm_scope(self) == "per process"
        ):
            print(
                "VideoClassifier: batch norm sees one process's clips only; trainer.sync_batchnorm makes it global",
                flush=True,
            )

    # hooks that all supervised methods share
    on_save_checkpoint = fine_tuning.make_checkpoint_self_contained
    on_load_checkpoint = fine_tuning.restore_metadata
    configure_optimizers = fine_tuning.configure_optimizer


def _metadata(datamodule: LightningDataModule) -> dict[str, Any] | None:
    """Return the metadata of a video classifier, with CLIP_SETTINGS as its options; None if the data does not give it.

    A setting that the data leaves open is left out.
    """
    metadata = metadata_from_datamodule("video", datamodule)
    if metadata is None:
        return None
    settings = {name: value for name in CLIP_SETTINGS if (value := getattr(datamodule, name, None)) is not None}
    return {**metadata, "options": {**metadata.get("options", {}), **settings}}
