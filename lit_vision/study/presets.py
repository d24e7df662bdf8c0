"""What a study trains: networks, views and hyper-parameters by image size. One fixed recipe, so that nothing is chosen per folder.

The values were settled on the training and validation splits of the embedded turned garments (CHANGELOG.md has the figures), and
hold for every folder: a cell at L labels uses L labels in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

TIMM = "timm:"  # before the name of public weights
TIMM_SIDE = 96  # public weights have learned from larger pictures: smaller ones are enlarged to this side, pixels
PUBLIC = "mobilenetv3_small_100.lamb_in1k"  # the public weights that a study tries by itself: small, Apache-2.0
# protocols that train a network on labels; the first is the verdict's
ON_LABELS = ("finetune", "lora", "prompt-deep", "bias", "prompt-shallow", "head+norm", "last-1")
PLAIN_VIT_PROTOCOLS = ("lora", "prompt-deep", "prompt-shallow")  # of these, what needs a plain ViT
HASHED = ("lora", "prompt-deep", "bias")  # of these, what a recipe's hash has always held; see StudyPreset.as_dict
FULL_STEPS = 300  # from so many on a fine-tuning gets its full learning rate
SMALL = 64  # up to this side, pixels: small-stem CNN and patch-4 ViT


@dataclass(frozen=True)
class Network:
    """A backbone: the short name that tables print, its timm name, and further arguments of Backbone."""

    name: str
    backbone: str
    args: dict[str, Any]
    size: int | None = None  # side of its input, pixels; None: the recipe's

    @property
    def plain_vit(self) -> bool:
        """Whether adapters can be added to it."""
        return self.backbone.startswith(("vit_", "deit"))


@dataclass(frozen=True)
class StudyPreset:
    """Everything that a study trains with at one image size.

    Attributes:
        size: side of the pictures that the networks see, pixels.
        cnn: the network of SimCLR and of the baseline `scratch-cnn`; vit: of MAE and `scratch-vit`.
        simclr, mae: arguments of the method (its backbone apart); their `batch_size` goes to the loader.
        simclr_views, mae_views: options of the views of that name; train_views: of the view `train`, by network.
        tune: arguments of Classifier when it starts from pre-trained weights, by network; scratch: when it does not.
        adapt: what another protocol than fine-tuning changes of them, by protocol.
        batch_size: of every training on labels, at most.
        scratch_factor: steps of a training from scratch per step of a fine-tuning (it has no pre-training to lean on).
    """

    size: int
    cnn: Network
    vit: Network
    simclr: dict[str, Any] = field(default_factory=dict)
    mae: dict[str, Any] = field(default_factory=dict)
    simclr_views: dict[str, Any] = field(default_factory=dict)
    mae_views: dict[str, Any] = field(default_factory=dict)
    train_views: dict[str, dict[str, Any]] = field(default_factory=dict)
    tune: dict[str, dict[str, Any]] = field(default_factory=dict)
    scratch: dict[str, dict[str, Any]] = field(default_factory=dict)
    adapt: dict[str, dict[str, Any]] = field(default_factory=dict)
    batch_size: int = 64
    scratch_factor: int = 4

    def network(self, init: str) -> Network:
        """Of a start: MAE's and scratch-vit's is the ViT, SimCLR's and scratch-cnn's the CNN, `timm:NAME` is that model."""
        if init.startswith(TIMM):
            return Network("timm", init.removeprefix(TIMM), {}, max(self.size, TIMM_SIDE))
        return self.vit if init in ("mae", "scratch-vit") else self.cnn

    def options(self, init: str, protocol: str = "finetune", steps: int | None = None) -> dict[str, Any]:
        """Arguments of Classifier (its backbone apart) for a start and a protocol.

        A fine-tuning of fewer than 300 steps gets a lower learning rate, down to a third: it begins at the linear probe, and large
        steps take it from there before there is time to come back. None: as many as it needs.
        """
        network = self.network(init).name
        if init.startswith("scratch-"):
            return self.scratch[network]
        options = {**self.tune[network], **self.adapt.get(protocol, {})}
        share = 1.0 if steps is None else min(1.0, max(1 / 3, steps / FULL_STEPS))
        return {**options, "lr": options["lr"] * share}

    def steps_per_epoch(self, labels: int) -> int:
        """Of a training on so many labels."""
        return -(-labels // self.batch_size)

    def protocols(self, init: str, asked: Sequence[str]) -> list[str]:
        """Those of `asked` that fit a start: from scratch everything trains, adapters need a plain ViT."""
        if init.startswith("scratch-"):
            return ["finetune"]
        return [one for one in asked if one not in PLAIN_VIT_PROTOCOLS or self.network(init).plain_vit]

    def side(self, init: str) -> int:
        """Side of a start's input, pixels."""
        return self.network(init).size or self.size

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for hashing and for the record.

        Of `adapt` only what was there first: plans and pre-trainings on disk go by this hash, and a protocol that was added later costs
        nobody a training. Each training on labels goes by its own `options` besides.
        """
        return {**asdict(self), "adapt": {name: self.adapt[name] for name in HASHED if name in self.adapt}}


def preset_for(size: int, rotation: float = 0.0) -> StudyPreset:
    """The recipe for pictures of `size` pixels.

    Args:
        size: side of the networks' input, pixels; a multiple of 4 up to 64, of 16 above.
        rotation: all trainings, baselines too, see pictures turned by U(-rotation, rotation) degrees.
    """
    turn = {"rotation": rotation} if rotation else {}
    if size <= SMALL:
        deep = {"stem": "small", "stem_type": "deep", "stem_width": 8}
        cnn = Network("cnn", "resnet18", {**deep, "layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]})
        vit = Network(
            "vit",
            "vit_tiny_patch16_224",
            {"img_size": size, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 2},
        )
        decoder = {"decoder_width": 64, "decoder_depth": 1, "decoder_heads": 4}
    else:
        cnn = Network("cnn", "resnet18", {})
        vit = Network("vit", "vit_small_patch16_224", {"img_size": size})
        decoder = {"decoder_width": 192, "decoder_depth": 4, "decoder_heads": 6}
    light = {"brightness": 0.3, "contrast": 0.3}
    adam = {"optimizer": "adamw", "base_lr": None, "warmup_epochs": 0.0}
    return StudyPreset(
        size,
        cnn,
        vit,
        simclr={
            "temperature": 0.2,
            "projection_width": 64,
            "projection_layers": 2,
            "projection_batch_norm": True,
            "lr": 2e-3,
            "weight_decay": 1e-4,
            "batch_size": 256,
            **adam,
        },
        mae={"mask_ratio": 0.75, "lr": 2e-3, "weight_decay": 0.05, "batch_size": 256, **decoder, **adam},
        simclr_views={"crop_scale": [0.3, 1.0], **turn},
        mae_views={"crop_scale": [0.5, 1.0], **turn},
        train_views={
            "cnn": {"crop_scale": [0.5, 1.0], **light, **turn},
            "vit": {"crop_scale": [0.9, 1.0], **light, **turn},
            "timm": {"crop_scale": [0.5, 1.0], **light, **turn},
        },
        tune={
            "cnn": {"lr": 3e-3, "weight_decay": 0.05, "label_smoothing": 0.1, **adam},
            "vit": {"lr": 1e-3, "weight_decay": 0.05, "label_smoothing": 0.1, "layer_decay": 0.75, **adam},
            "timm": {"lr": 5e-4, "weight_decay": 0.05, "label_smoothing": 0.1, **adam},
        },
        scratch={
            "cnn": {"lr": 2e-3, "weight_decay": 0.05, "label_smoothing": 0.1, **adam},
            "vit": {"lr": 1e-3, "weight_decay": 0.05, "label_smoothing": 0.1, **adam},
        },
        adapt={
            "lora": {"tune": "lora", "lr": 3e-3, "layer_decay": 1.0},
            "prompt-deep": {"tune": "prompt-deep", "lr": 3e-3, "layer_decay": 1.0, "prompt_length": 8},
            "bias": {"tune": "bias", "lr": 3e-3, "layer_decay": 1.0},
            "prompt-shallow": {"tune": "prompt-shallow", "lr": 3e-3, "layer_decay": 1.0, "prompt_length": 8},
            "head+norm": {"tune": "head+norm", "lr": 3e-3, "layer_decay": 1.0},
            "last-1": {"tune": "last-1"},
        },
    )
