"""Captioner training: the network of network.py as a LightningModule.

B images and captions, S tokens of a caption.
"""

import math
import warnings
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor

from lit_vision import distributed, optim
from lit_vision.data.batch import Batch, normalize_batch
from lit_vision.errors import UserError
from lit_vision.evaluation.captions import caption_scores, nearest_rows
from lit_vision.evaluation.features import extract_features
from lit_vision.methods import fine_tuning
from lit_vision.methods.captioner.network import CaptionerNetwork
from lit_vision.methods.hyper_parameters import keep_plain_hyper_parameters
from lit_vision.methods.pixels import check_channels
from lit_vision.weights.model_metadata import CAPTION_SCORES, metadata_from_datamodule


class Captioner(CaptionerNetwork, LightningModule):
    """Train a transformer decoder to describe images in words: the image's features, then the caption, token by token.

    Needs images with captions (`lit_vision.data.PairsDataModule`). The loss is the cross-entropy of each token after
    the true tokens before it (teacher forcing), the mean over the tokens of the batch of all processes. Small sets want
    a pre-trained backbone, locked (`lock_image`).

    Each validation also measures the baseline that a caption model must beat: the caption of the nearest training image
    by the cosine of the backbone's pooled features. Both scores are stored in checkpoints, and `lit-vision predict` and
    `serve` refuse a decoder that does not beat the baseline unless they are asked for it.

    Args:
        backbone: a timm model name.
        backbone_args: further arguments of Backbone.
        backbone_checkpoint: weights of the backbone, in any layout that `weights/load.py` reads.
        lock_image: the backbone keeps its weights and is in evaluation mode.
        prefix_grid: side of the grid to which the backbone's last map is averaged: 7 gives 49 tokens before the
            caption; 0 gives one, of the pooled features.
        vocab_size: tokens that the decoder has vectors for; at least as many as the data's tokenizer has.
        context_length: most tokens of a caption, start and end counted; as data.context_length.
        decoder_width: of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_heads: of its attention.
        dropout: share of the decoder's values that are set to 0 in training, drawn by (seed, key of the sample).
        seed: of the dropout.
        beams: of the beam search that makes captions, in validation and afterwards; 1 is greedy.
        mean: of the pixels, per channel, in [0, 1]; None is that of the backbone's weights.
        std: of the pixels, per channel.
        optimizer: adamw, adam, sgd, lars or lamb.
        betas: of adam, adamw and lamb.
        momentum: of sgd and lars.
        base_lr: learning rate per 256 images; used if lr is None.
        lr: absolute learning rate.
        min_lr: absolute learning rate at the end.
        weight_decay: of parameters with more than one dimension, except tokens and positions.
        warmup_epochs: linear warm-up, then `schedule`.
        schedule: cosine (to min_lr), or warmup-stable-decay: constant, then a decay that may begin at any step.
        decay_share: of all steps, the decay of warmup-stable-decay, between 0 and 1.
        tokenizer_json: of the captions, from a checkpoint; None takes the data's.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do. PartialMatchError (a UserError):
            the checkpoint does not fit.
    """

    def __init__(
        self,
        backbone: str = "vit_base_patch16_224",
        backbone_args: dict[str, Any] | None = None,
        backbone_checkpoint: str | None = None,
        lock_image: bool = False,
        prefix_grid: int = 7,
        vocab_size: int = 4096,
        context_length: int = 64,
        decoder_width: int = 256,
        decoder_depth: int = 2,
        decoder_heads: int = 4,
        dropout: float = 0.1,
        seed: int = 0,
        beams: int = 5,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        optimizer: str = "adamw",
        betas: tuple[float, float] = (0.9, 0.98),
        momentum: float = 0.9,
        base_lr: float | None = None,
        lr: float | None = 5e-4,
        min_lr: float = 0.0,
        weight_decay: float = 0.05,
        warmup_epochs: float = 1,
        schedule: optim.Schedule = "cosine",
        decay_share: float = 0.2,
        tokenizer_json: str | None = None,
    ) -> None:
        super(CaptionerNetwork, self).__init__()  # LightningModule's: the network needs the hyper-parameters first
        self.save_hyperparameters()
        keep_plain_hyper_parameters(self)
        self.build(self.hparams)
        self.metadata: dict[str, Any] | None = None
        self._evaluated: list[tuple[int, str, float, int]] = []  # row of the split, caption, log-probability, tokens
        self._baseline: dict[str, float] | None = None

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn pixels into normalised floats, (B, V, C, H, W), on the device."""
        return normalize_batch(batch, self.mean, self.std)

    def setup(self, stage: str) -> None:
        """Refuse data that does not fit; agree with it on the tokenizer, which checkpoints then hold."""
        distributed.batch_norm_scope(self)
        check_channels(self)
        if self.hparams.lock_image:  # in evaluation mode on purpose
            warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
        self._agree_on_tokenizer()

    def _agree_on_tokenizer(self) -> None:
        """Have the data use this model's tokenizer, or take the data's if the model has none."""
        h = self.hparams
        try:
            data = getattr(self.trainer, "datamodule", None)
        except RuntimeError:  # not in a Trainer: the checkpoint is only loaded
            return
        if data is None or not hasattr(data, "captions"):
            raise UserError("data: the images have no captions; use lit_vision.data.PairsDataModule")
        if data.context_length != h.context_length:
            raise UserError(f"model.context_length: {h.context_length}, the data has {data.context_length}; make equal")
        if h.tokenizer_json is None:
            h.tokenizer_json = data.tokenizer.json
        else:
            data.use_tokenizer(self.tokenizer)
        if self.tokenizer.vocab_size > h.vocab_size:
            raise UserError(
                f"model.vocab_size: {h.vocab_size}, the tokenizer has {self.tokenizer.vocab_size} tokens; raise it"
            )

    def caption_log_probabilities(self, batch: Batch, dropout: bool = False) -> Tensor:
        """Return the log-probability of each token of a batch's captions after the first, (B, S - 1); 0 at padding.

        Raises:
            UserError: several views of an image.
        """
        images = batch["images"]
        if images.shape[1] != 1:
            raise UserError(
                f"data.train_view: one view of each image is needed, got {images.shape[1]}; set it to train"
            )
        keys = batch["key"] if dropout else None
        return self.token_log_probabilities(self(images[:, 0]), batch["tokens"], batch["token_mask"], keys)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch; logs train/loss, of all processes, in nats a token."""
        found = self.caption_log_probabilities(batch, dropout=True)
        loss = distributed.global_mean(-found.sum(), batch["token_mask"][:, 1:].sum())
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the captions of a batch's images for `on_validation_epoch_end`."""
        found = self.caption_log_probabilities(batch).sum(1).tolist()
        tokens, _ = self.caption(batch["images"][:, 0])
        counts = batch["token_mask"][:, 1:].sum(1).tolist()
        self._evaluated += zip(batch["key"][:, 1].tolist(), self.tokenizer.decode(tokens), found, counts)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log val/loss (nats a token, each image's first caption), and of captions val/bleu4, val/rouge_l, val/cider.

        val/neighbor_bleu4 and so on are those of the baseline; see `evaluation.captions.caption_scores`.
        """
        self._measure("val")

    def on_test_epoch_end(self) -> None:
        """Log the same under test/."""
        self._measure("test")

    def _measure(self, split: str) -> None:
        rows = _of_all_processes(self._evaluated)
        self._evaluated.clear()
        references = self.trainer.datamodule.captions(split)
        tokens = sum(count for _, _, _, count in rows)
        values = {"loss": -sum(log_p for _, _, log_p, _ in rows) / max(1, tokens)}
        scores = caption_scores([text for _, text, _, _ in rows], [references[row] for row, _, _, _ in rows])
        values |= scores
        complete = not self.trainer.sanity_checking and len(rows) == len(references)
        if complete and not distributed.is_sharded(self):
            baseline = self._measure_baseline(split)
            values |= {f"neighbor_{name}": value for name, value in baseline.items()}
            if split == "val" and self.metadata is not None:
                stored = {"images": len(rows), "decoder": scores, "neighbor": baseline}
                self.metadata["options"] = {**(self.metadata.get("options") or {}), CAPTION_SCORES: stored}
        for name, value in values.items():  # the same on every process
            self.log(f"{split}/{name}", value, prog_bar=name == "cider", sync_dist=self.trainer.world_size > 1)

    def _measure_baseline(self, split: str) -> dict[str, float]:
        """Return the scores of the nearest training images' first captions, by the backbone's weights as they are."""
        if self._baseline is not None and self.hparams.lock_image and split == "val":
            return self._baseline  # the features are those of the last validation
        data = self.trainer.datamodule
        with self.trainer.precision_plugin.forward_context():
            bank, queries = (
                extract_features(self.backbone, data.eval_loader(role), self.mean, self.std, self.device, False)
                for role in ("train", split)
            )
        known, wanted = data.captions("train"), data.captions(split)
        nearest = nearest_rows(queries.features, bank.features)
        texts = [known[row][0] for row in bank.keys[nearest, 1].tolist()]
        scores = caption_scores(texts, [wanted[row] for row in queries.keys[:, 1].tolist()])
        self._baseline = scores if split == "val" else self._baseline
        return scores

    def on_fit_start(self) -> None:
        """Store image size, crop and range of values, which prediction needs."""
        found = metadata_from_datamodule("captioning", self.trainer.datamodule, needs_classes=False)
        scores = ((self.metadata or {}).get("options") or {}).get(CAPTION_SCORES)  # of a run that is resumed
        if found is not None and scores is not None:
            found["options"] = {**found.get("options", {}), CAPTION_SCORES: scores}
        self.metadata = found or self.metadata

    def on_train_start(self) -> None:
        """Print how many parameters train, and a note if batch norm sees one process's images only."""
        if self.trainer.is_global_zero:
            trains = sum(p.numel() for p in self.parameters() if p.requires_grad)
            chance = math.log(self.tokenizer.vocab_size)
            print(f"Captioner: {trains:,} parameters train; the loss of a random guess is {chance:.2f}", flush=True)
            if not self.hparams.lock_image and distributed.batch_norm_scope(self) == "per process":
                print(
                    "Captioner: batch norm sees one process's images only; trainer.sync_batchnorm makes it global",
                    flush=True,
                )

    on_save_checkpoint = fine_tuning.make_checkpoint_self_contained

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the checkpoint's metadata, and its tokenizer, also for the data."""
        fine_tuning.restore_metadata(self, checkpoint)
        stored = (checkpoint.get("hyper_parameters") or {}).get("tokenizer_json")
        if stored is not None and stored != self.hparams.tokenizer_json:
            self.hparams.tokenizer_json = stored
            self.__dict__.pop("tokenizer", None)
            self._agree_on_tokenizer()

    def configure_optimizers(self) -> dict[str, Any]:
        """Return optimizer and per-step schedule; see `lit_vision.optim.optimizer_and_schedule`."""
        groups = optim.decay_groups(self.named_parameters(), self.hparams.weight_decay)
        return optim.optimizer_from_hparams(self, groups)


def _of_all_processes(rows: list[tuple[int, str, float, int]]) -> list[tuple[int, str, float, int]]:
    """Join rows of all processes, sorted by their number, each number once: padding repeats some."""
    if distributed.world_size() > 1:
        gathered: list[Any] = [None] * distributed.world_size()
        dist.all_gather_object(gathered, rows)
        rows = [row for part in gathered for row in part]
    return sorted({row[0]: row for row in rows}.values())
