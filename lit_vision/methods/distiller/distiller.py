"""Distillation: a small classifier learns the answers, and if asked the features, of a larger network.

Source: Hinton et al. 2015, arXiv:1503.02531, section 2 (answers at a temperature T, gradients scaled by T^2);
Romero et al. 2015, arXiv:1412.6550, section 2.2 (features through a learned map, thrown away afterwards).
Unlike the second: the pooled features of the last layer are matched, through a linear map, and in one stage.

B images, C H W channels and pixels, K classes, D width of the teacher's features.
"""

import math
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lit_vision.data.batch import Batch
from lit_vision.errors import UserError
from lit_vision.methods import fine_tuning
from lit_vision.methods.classifier.classifier import Classifier, single_view
from lit_vision.methods.classifier.network import classification_loss
from lit_vision.methods.distiller.teacher import Teacher, open_teacher
from lit_vision.methods.pixels import check_channels
from lit_vision.weights.licenses import with_note
from lit_vision.weights.model_metadata import metadata_from_datamodule

_OWN = ("teacher", "logit_weight", "temperature", "feature_weight", "feature_loss")
_PROJECTION = "feature_projection."  # keys of the learned map in the module's state
_STORED = "distiller"  # key of the learned map in a checkpoint, beside the student's state


def logit_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(p || q), p and q the teacher's and the student's softmax of logits / T, mean over images.

    As T grows its gradient tends to that of |student - teacher|^2 / 2K of centered logits (Hinton et al., Eq. 4).

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        temperature: T, greater than 0.

    Returns:
        Scalar in nats, at least float32; 0 if the logits are equal up to a constant for each image.
    """
    student, teacher = (x if x.dtype.itemsize > 4 else x.float() for x in (student, teacher))
    p, q = (F.log_softmax(x / temperature, 1) for x in (teacher, student))
    return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)


def feature_loss(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """Return the distance of two sets of features, mean over images, at least float32.

    Args:
        student: (B, D), mapped to the teacher's width.
        teacher: (B, D).
        kind: "cosine": 1 - cosine similarity, in [0, 2]; "mse": the squared difference, mean over D too.
    """
    student, teacher = (x if x.dtype.itemsize > 4 else x.float() for x in (student, teacher))
    if kind == "cosine":
        return 1 - F.cosine_similarity(student, teacher).mean()
    return F.mse_loss(student, teacher)


class Distiller(Classifier):
    """Classifier that is trained by a teacher; its checkpoints are a Classifier's, and using them takes no teacher.

    Loss: (1 - a) CE(labels) + a T^2 KL(teacher || student) + w distance(features). Images without a label (-1) have no
    first term: its mean is over the labeled ones of a batch. The teacher sees the same distorted (and mixed) pixels, in
    evaluation mode. Its license goes into the student's metadata. Only `fit` opens it.

    Args:
        backbone: of the student, a timm model name.
        num_classes: K, 2 or more.
        teacher: a checkpoint or .safetensors of a Classifier (logits and features), or of another method (features
            alone); `timm:NAME`, or a name of weights/public_packages.py.
        logit_weight: a, in [0, 1]; 0 for a teacher without a classifier.
        temperature: T.
        feature_weight: w; 0 leaves the features out.
        feature_loss: cosine or mse, after a linear map from the student's width to the teacher's, which is trained with
            the student and not part of it.
        settings: further arguments of Classifier.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        teacher: str,
        logit_weight: float = 0.9,
        temperature: float = 4.0,
        feature_weight: float = 0.0,
        feature_loss: Literal["cosine", "mse"] = "cosine",
        **settings: Any,
    ) -> None:
        if not 0 <= logit_weight <= 1:
            raise UserError(f"model.logit_weight: {logit_weight} is not in [0, 1]; 0.9 is usual")
        if not 0 < temperature < math.inf:
            raise UserError(f"model.temperature: {temperature} is not a number above 0; 4 is usual")
        if not 0 <= feature_weight < math.inf or feature_weight + logit_weight == 0:
            raise UserError(
                f"model.feature_weight: {feature_weight}; give 0 or more, and above 0 if logit_weight is 0: nothing of "
                "the teacher would be used"
            )
        if feature_loss not in ("cosine", "mse"):
            raise UserError(f"model.feature_loss: {feature_loss!r} is not cosine or mse; choose one of these")
        super().__init__(backbone, num_classes, **settings)
        self.feature_projection: nn.Linear | None = None
        self.teacher: Teacher | None = None

    def setup(self, stage: str) -> None:
        """Open the teacher for a training; refuse data or a teacher that does not fit."""
        data = getattr(self.trainer, "datamodule", None)
        unlabeled = stage == "fit" and data is not None and not getattr(data, "num_classes", 1)
        if unlabeled:
            fine_tuning.check_batch_norm(self)
            check_channels(self)
        else:
            super().setup(stage)
        if stage != "fit":
            return
        h = self.hparams
        self.teacher = open_teacher(h.teacher)
        if len(self.teacher.mean) != self.backbone.config["in_chans"]:
            raise UserError(
                f"model.teacher: {self.teacher.name} is for images of {len(self.teacher.mean)} channels, the student "
                f"for {self.backbone.config['in_chans']}; set in_chans in backbone_args, or take another teacher"
            )
        notes = []
        if h.logit_weight > 0:
            if not self.teacher.classes:
                raise UserError(
                    f"model.teacher: {self.teacher.name} has no classifier; set model.logit_weight to 0 and "
                    "model.feature_weight above 0"
                )
            notes.append(self.teacher.match(h.num_classes, getattr(data, "class_names", None)))
        elif unlabeled:
            raise UserError("model.logit_weight: 0, and no image has a label, so the head would not learn; raise it")
        if h.feature_weight > 0 and self.feature_projection is None:
            self.feature_projection = nn.Linear(self.backbone.width, self.teacher.width)
        if self.trainer.is_global_zero:
            license = with_note(self.teacher.license) or "not stated"
            notes.append(f"teacher {self.teacher.name}: license {license}; the student's metadata name it")
            print(*notes, sep="\n", flush=True)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Refuse labels outside [0, K), except -1 in training, while the batch is still on the CPU."""
        labels = batch["label"]
        if self.trainer.training and labels.dim() == 1:
            fine_tuning.check_labels(labels[labels != -1], self.hparams.num_classes, "image")
            if self.mix is not None and bool((labels == -1).any()):
                raise UserError("model.mixup, cutmix: mix labels, and images have none (-1); set both to 0")
            return batch
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch (see the class), and the watermark's; logs its parts as train/*_loss."""
        assert self.teacher is not None  # opened by `setup`
        h, labels = self.hparams, batch["label"]
        images, targets = self.training_targets(single_view(batch), labels.clamp_min(0), batch["key"])
        features = self.features(images)
        logits = self.head(self.head_norm(features))
        teacher_logits, teacher_features = self.teacher(images, self.mean, self.std)
        loss = logits.sum() * 0
        labeled = labels != -1
        if h.logit_weight < 1 and bool(labeled.any()):
            label_part = classification_loss(logits[labeled], targets[labeled], h.loss, self.class_weights)
            self.log("train/label_loss", label_part)
            loss = loss + (1 - h.logit_weight) * label_part
        if h.logit_weight > 0:
            assert teacher_logits is not None  # `setup` refuses a teacher without
            logit_part = logit_loss(logits, teacher_logits, h.temperature)
            self.log("train/logit_loss", logit_part)
            loss = loss + h.logit_weight * logit_part
        if self.feature_projection is not None:
            feature_part = feature_loss(self.feature_projection(features), teacher_features, h.feature_loss)
            self.log("train/feature_loss", feature_part)
            loss = loss + h.feature_weight * feature_part
        self.log("train/loss", loss, prog_bar=True)
        return loss + self.watermark_part()

    def on_fit_start(self) -> None:
        """Store what prediction needs, and the teacher's license; of unlabeled data the teacher's class names."""
        super().on_fit_start()
        assert self.teacher is not None  # opened by `setup`
        if self.metadata is None:
            found = metadata_from_datamodule("classification", self.trainer.datamodule, needs_classes=False)
            self.metadata = None if found is None else {**found, "class_names": self.teacher.class_names}
        if self.metadata is not None:
            options = {**self.metadata.get("options", {}), "teacher": self.teacher.record()}
            self.metadata = {**self.metadata, "license": self.teacher.license, "options": options}

    def on_train_start(self) -> None:
        """As Classifier's; sharded weights are refused with a feature loss, whose map stands outside the student."""
        super().on_train_start()
        if self.feature_projection is not None and hasattr(self.feature_projection.weight, "full_tensor"):
            raise UserError(
                "model.feature_weight: is not for weights that FSDP shards; train with trainer.strategy ddp"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make it a Classifier's checkpoint: the map of the features stands beside the student's weights."""
        fine_tuning.make_checkpoint_self_contained(self, checkpoint)
        state = checkpoint["state_dict"]
        if any(key.startswith(_PROJECTION) for key in state):
            checkpoint[_STORED] = {key: value for key, value in state.items() if key.startswith(_PROJECTION)}
            checkpoint["state_dict"] = {key: value for key, value in state.items() if key not in checkpoint[_STORED]}
        hyper = checkpoint.get("hyper_parameters", {})
        checkpoint["hyper_parameters"] = {key: value for key, value in hyper.items() if key not in _OWN}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the map of the features back, where a training goes on.

        Raises:
            UserError: one of the two was trained with a feature loss and the other without.
        """
        fine_tuning.restore_metadata(self, checkpoint)
        if self.teacher is None:  # no training: `setup` opens it
            return
        if (self.feature_projection is None) != (_STORED not in checkpoint):
            used = "without" if self.feature_projection is not None else "with"
            raise UserError(f"model.feature_weight: the checkpoint was trained {used} a feature loss; resume it so")
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **checkpoint.get(_STORED, {})}
