"""ImageText training: the network of network.py as a LightningModule (CLIP, SigLIP, LiT).

B images and captions, S tokens, E width of the common space.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor

from lit_vision import distributed, optim
from lit_vision.data.batch import Batch, normalize_batch
from lit_vision.data.captions import read_tokenizer
from lit_vision.errors import UserError
from lit_vision.evaluation.retrieval import recall_in_batch, retrieve
from lit_vision.methods import fine_tuning
from lit_vision.methods.hyper_parameters import keep_plain_hyper_parameters
from lit_vision.methods.image_text.network import ImageTextNetwork
from lit_vision.methods.image_text.text_tower import HuggingFaceText, tokenizer_file
from lit_vision.methods.pixels import check_channels, store_image_format


class ImageText(ImageTextNetwork, LightningModule):
    """Train an image tower and a text tower so that an image and its caption get similar vectors.

    Needs images with captions (`lit_vision.data.PairsDataModule`). Negatives come from all processes, so the loss is
    that of the global batch. CLIP's recipe: batch 32,768, AdamW, lr 5e-4 with 2,000 warm-up steps and a cosine,
    betas 0.9 and 0.98, weight decay 0.2. Small sets of pairs want a pre-trained image tower, locked (`lock_image`).

    Args:
        backbone: a timm model name, the image tower.
        backbone_args: further arguments of Backbone.
        backbone_checkpoint: weights of the image tower, in any layout that `weights/load.py` reads.
        lock_image: the image tower keeps its weights and is in evaluation mode (LiT); its projection trains.
        text_model: folder of a text model of transformers, or its name on the Hugging Face Hub; its own tokenizer is
            then used. None is a transformer of our own, from scratch, of the sizes below.
        lock_text: the text model keeps its weights; its projection trains.
        vocab_size: tokens that our text tower has vectors for; at least as many as the data's tokenizer has.
        context_length: most tokens of a caption, start and end counted; as data.context_length.
        text_width: of our text tower.
        text_depth: blocks of our text tower.
        text_heads: of our text tower's attention.
        text_causal: each token of our text tower sees those before it only, as CLIP's; False: all, as SigLIP's.
        text_pool: the caption's vector: "end", the last token's (ours by default), "mean" (a text model's by default)
            or "first".
        embed_width: of the common space.
        loss: "softmax" (CLIP: scale exp(2.6593) at the start, at most 100) or "sigmoid" (SigLIP: scale 10, bias -10 at
            the start).
        mean: of the pixels, per channel, in [0, 1]; None is that of the image tower's weights.
        std: of the pixels, per channel.
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
        tokenizer_json: text of a tokenizer.json; None takes the text model's, else the data's. Checkpoints hold it.
        text_config: JSON of the text model's configuration, in checkpoints: they are read without `text_model`.

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
        text_model: str | None = None,
        lock_text: bool = False,
        vocab_size: int = 4096,
        context_length: int = 64,
        text_width: int = 512,
        text_depth: int = 12,
        text_heads: int = 8,
        text_causal: bool = True,
        text_pool: str | None = None,
        embed_width: int = 512,
        loss: Literal["softmax", "sigmoid"] = "softmax",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        optimizer: str = "adamw",
        betas: tuple[float, float] = (0.9, 0.98),
        momentum: float = 0.9,
        base_lr: float | None = None,
        lr: float | None = 5e-4,
        min_lr: float = 0.0,
        weight_decay: float = 0.2,
        warmup_epochs: float = 1,
        schedule: optim.Schedule = "cosine",
        decay_share: float = 0.2,
        tokenizer_json: str | None = None,
        text_config: str | None = None,
    ) -> None:
        super(ImageTextNetwork, self).__init__()  # LightningModule's: the network needs the hyper-parameters first
        self.save_hyperparameters()
        keep_plain_hyper_parameters(self)
        self.build(self.hparams)
        self.metadata: dict[str, Any] | None = None
        self._evaluated: list[tuple[Tensor, Tensor, Tensor]] = []  # vectors of images and captions, rows of the split

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn pixels into normalised floats, (B, V, C, H, W), on the device."""
        return normalize_batch(batch, self.mean, self.std)

    def setup(self, stage: str) -> None:
        """Refuse data that does not fit; agree with it on the tokenizer, which checkpoints then hold."""
        distributed.batch_norm_scope(self)
        check_channels(self)
        if self.hparams.lock_image or self.hparams.lock_text:  # in evaluation mode on purpose
            warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
        if self.trainer.world_size != distributed.world_size():
            raise UserError(
                f"trainer.strategy: {self.trainer.world_size} processes that do not exchange tensors would each see "
                "local negatives only; use ddp"
            )
        self._agree_on_tokenizer()

    def _agree_on_tokenizer(self) -> None:
        """Have the data use this model's tokenizer, or take the data's if the model has none."""
        h = self.hparams
        try:
            data = getattr(self.trainer, "datamodule", None)
        except RuntimeError:  # not in a Trainer: the checkpoint is only loaded
            return
        theirs = getattr(data, "context_length", h.context_length)
        if theirs != h.context_length:
            raise UserError(f"model.context_length: {h.context_length}, the data has {theirs}; make them equal")
        if h.tokenizer_json is None and h.text_model is not None:
            h.tokenizer_json = read_tokenizer(tokenizer_file(h.text_model), h.context_length).json
        if h.tokenizer_json is None:
            h.tokenizer_json = getattr(getattr(data, "tokenizer", None), "json", None)
        elif data is not None and hasattr(data, "use_tokenizer"):
            data.use_tokenizer(self.tokenizer)
        if h.tokenizer_json is not None and h.text_model is None and self.tokenizer.vocab_size > h.vocab_size:
            raise UserError(
                f"model.vocab_size: {h.vocab_size}, the tokenizer has {self.tokenizer.vocab_size} tokens; raise it"
            )

    def encode_pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return unit vectors of the images and of the captions of a batch, both (B, E).

        Raises:
            UserError: the data has no captions, or several views of an image.
        """
        if "tokens" not in batch:
            raise UserError("data: the images have no captions; use lit_vision.data.PairsDataModule")
        if batch["images"].shape[1] != 1:
            raise UserError(
                f"data.train_view: one view of each image is needed, got {batch['images'].shape[1]}; set it to train"
            )
        return self(batch["images"][:, 0]), self.encode_tokens(batch["tokens"], batch["token_mask"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch; logs train/loss (of all processes), train/scale and train/recall1.

        recall1 is the fraction of this process's pairs in which the partner is the most similar one of its batch.
        """
        images, texts = self.encode_pairs(batch)
        loss: Tensor = self.similarity(images, texts)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/scale", self.similarity.scale.detach())
        self.log("train/recall1", recall_in_batch(images.detach(), texts.detach()))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the vectors of a batch for `on_validation_epoch_end`."""
        images, texts = self.encode_pairs(batch)
        self._evaluated.append((images, texts, batch["key"][:, 1]))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log val/loss, recall at 1, 5 and 10 and median rank, both ways, among all images and captions of the split.

        val/loss is that of the split as one batch with each image's first caption. val/recall1 is the mean of
        val/image_to_text_recall1 and val/text_to_image_recall1, see `evaluation.retrieval`.
        """
        self._measure("val")

    def on_test_epoch_end(self) -> None:
        """Log the same under test/."""
        self._measure("test")

    def _measure(self, split: str) -> None:
        images, firsts, rows = _joined(self._evaluated)
        self._evaluated.clear()
        captions = getattr(self.trainer.datamodule, "captions", None)
        if captions is None:
            texts, owners = firsts, torch.arange(len(rows))
        else:
            of_split = captions(split)
            lists = [of_split[row] for row in rows.tolist()]
            owners = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(several) for several in lists]))
            texts = self._encode_shared([text for several in lists for text in several])
        to_texts, to_images = retrieve(images, texts, owners)
        values = {"loss": float(self.similarity(images, firsts, across_processes=False))}
        values["recall1"] = (to_texts.recall[1] + to_images.recall[1]) / 2
        for name, found in (("image_to_text", to_texts), ("text_to_image", to_images)):
            values |= {f"{name}_recall{k}": value for k, value in found.recall.items()}
            values[f"{name}_median_rank"] = found.median_rank
        for name, value in values.items():  # the same on every process
            self.log(f"{split}/{name}", value, prog_bar=name == "recall1", sync_dist=self.trainer.world_size > 1)

    def _encode_shared(self, texts: list[str]) -> Tensor:
        """Return `encode_texts`, each process having encoded its share."""
        share = math.ceil(len(texts) / distributed.world_size())
        start = distributed.rank() * share
        return _joined([(self.encode_texts(texts[start : start + share]), torch.arange(start, start + share))])[0]

    def on_train_start(self) -> None:
        """Print the number of pairs that a step compares, and a note on batch norm; refuse a batch of one pair."""
        pairs = optim.training_length(self).global_batch_size // self.trainer.accumulate_grad_batches
        if pairs < 2:
            raise UserError("data.batch_size: one pair a step leaves no negatives; set it to 2 or more")
        if self.trainer.is_global_zero:
            trains = sum(p.numel() for p in self.parameters() if p.requires_grad)
            print(f"ImageText: {pairs} pairs a step, {trains:,} parameters train", flush=True)
            if not self.hparams.lock_image and distributed.batch_norm_scope(self) == "per process":
                print(
                    "ImageText: batch norm sees one process's images only; trainer.sync_batchnorm makes it global",
                    flush=True,
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what using the model takes: image size, tokenizer, and the text model's configuration."""
        store_image_format(self, checkpoint)
        fine_tuning.make_checkpoint_self_contained(self, checkpoint)
        if isinstance(self.text, HuggingFaceText) and "hyper_parameters" in checkpoint:
            checkpoint["hyper_parameters"]["text_config"] = self.text.config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the checkpoint's tokenizer, also for the data."""
        stored = (checkpoint.get("hyper_parameters") or {}).get("tokenizer_json")
        if stored is not None and stored != self.hparams.tokenizer_json:
            self.hparams.tokenizer_json = stored
            self.__dict__.pop("tokenizer", None)
            self._agree_on_tokenizer()

    def configure_optimizers(self) -> dict[str, Any]:
        """Return optimizer and per-step schedule; see `lit_vision.optim.optimizer_and_schedule`."""
        groups = optim.decay_groups(self.named_parameters(), self.hparams.weight_decay)
        return optim.optimizer_from_hparams(self, groups)


def _joined(batches: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Join batches of all processes by columns, the last of which numbers the rows: sorted by it, each number once.

    Processes may have unequally many rows, and padding repeats some.
    """
    columns = tuple(torch.cat(column) for column in zip(*batches))
    device = columns[0].device
    if distributed.world_size() > 1:
        gathered: list[Any] = [None] * distributed.world_size()
        dist.all_gather_object(gathered, tuple(column.cpu() for column in columns))
        columns = tuple(torch.cat(column) for column in zip(*gathered))
    numbers = columns[-1].cpu().numpy()
    index = torch.from_numpy(np.unique(numbers, return_index=True)[1])
    return tuple(column[index.to(column.device)].to(device) for column in columns)
