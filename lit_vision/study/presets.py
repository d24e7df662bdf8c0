"""Networks, views and hyper-parameters of a study by image size: a fixed recipe; nothing is chosen per folder.

The values were tuned on the training and validation splits of the embedded rotated garments (CHANGELOG.md has the
figures) and are used for every folder: a cell at L labels uses L labels in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

TIMM = "timm:"  # prefix of the names of public weights
TIMM_SIDE = 96  # public weights were trained on larger images: smaller ones are enlarged to this side, pixels
# the public weights that a study tries by default, Apache-2.0 all: of small images, of photographs, and with a GPU
PUBLIC = "mobilenetv3_small_100.lamb_in1k"
PUBLIC_PHOTOGRAPHS = "tf_efficientnet_lite0"
PUBLIC_GPU = "vit_small_patch14_dinov2.lvd142m"
PACKAGED = "tf_efficientnet_lite0"  # those that it tries where these cannot be had and a package ships them; Apache-2.0
# protocols that train a network on labels; the verdict reads the first
ON_LABELS = ("finetune", "lora", "prompt-deep", "bias", "prompt-shallow", "head+norm", "last-1")
PLAIN_VIT_PROTOCOLS = ("lora", "prompt-deep", "prompt-shallow")  # those of ON_LABELS that need a plain ViT
FULL_STEPS = 300  # steps from which a fine-tuning gets its full learning rate
SCRATCH = ("scratch-cnn", "scratch-vit")  # baselines from random weights
PRETRAINED = ("mae", "simclr", "lejepa")  # inits that a study pre-trains itself
SMALL = 64  # up to this side, pixels: CNN with a small stem, ViT with patches of 4 pixels


def is_plain_vit_name(backbone: str) -> bool:
    """Return True for timm's name of a plain ViT."""
    return backbone.startswith(("vit_", "deit"))


def method_of(init: str) -> str:
    """Return the method that a study pre-trains an init with, from nothing or ("simclr@INIT") from others' weights.

    "" for an init that it does not pre-train.
    """
    method = init.partition("@")[0]
    return method if method in PRETRAINED else ""


def base_of(init: str) -> str:
    """Return the init whose weights an init such as "simclr@INIT" starts from, "" for all others."""
    method, _, base = init.partition("@")
    return base if method in PRETRAINED else ""


@dataclass(frozen=True)
class Network:
    """A backbone of a study: short name, timm name, further arguments of Backbone, and side of its input."""

    name: str
    backbone: str
    args: dict[str, Any]
    size: int | None = None  # side of its input, pixels; None: that of the preset

    @property
    def plain_vit(self) -> bool:
        """True if adapters can be added to it, and MAE can pre-train it."""
        return is_plain_vit_name(self.backbone)


@dataclass(frozen=True)
class StudyPreset:
    """All settings of a study's trainings at one image size.

    Attributes:
        size: side of the images that the networks see, pixels.
        cnn: the network of SimCLR, LeJEPA and of the baseline `scratch-cnn`.
        vit: the network of MAE and of the baseline `scratch-vit`.
        simclr: arguments of the method without its backbone; `batch_size` goes to the loader.
        mae: likewise.
        lejepa: likewise.
        simclr_views: options of the view `simclr`.
        mae_views: options of the view `mae`.
        lejepa_views: options of the view `lejepa`.
        train_views: options of the view `train`, by network.
        tune: arguments of Classifier from pre-trained weights, by network.
        scratch: arguments of Classifier from random weights, by network.
        adapt: changes of `tune` for protocols other than fine-tuning, by protocol.
        batch_size: of every training on labels, at most.
        scratch_factor: steps of a training from scratch per step of a fine-tuning, since it has no pre-training.
        continued_lr: factor of the learning rate of a pre-training that starts from others' weights.
        networks: those of inits that bring their own weights, by init, as `lit_vision.study.inits` has opened them.
        frozen: side at which public weights, frozen, see the images, pixels; None: that of their trainings.
        frozen_sides: the same for inits that need another, by init.
    """

    size: int
    cnn: Network
    vit: Network
    simclr: dict[str, Any] = field(default_factory=dict)
    mae: dict[str, Any] = field(default_factory=dict)
    lejepa: dict[str, Any] = field(default_factory=dict)
    simclr_views: dict[str, Any] = field(default_factory=dict)
    mae_views: dict[str, Any] = field(default_factory=dict)
    lejepa_views: dict[str, Any] = field(default_factory=dict)
    train_views: dict[str, dict[str, Any]] = field(default_factory=dict)
    tune: dict[str, dict[str, Any]] = field(default_factory=dict)
    scratch: dict[str, dict[str, Any]] = field(default_factory=dict)
    adapt: dict[str, dict[str, Any]] = field(default_factory=dict)
    batch_size: int = 64
    scratch_factor: int = 4
    continued_lr: float = 0.1
    networks: dict[str, Network] = field(default_factory=dict)
    frozen: int | None = None
    frozen_sides: dict[str, int] = field(default_factory=dict)

    def network(self, init: str) -> Network:
        """Return the network of an init: that of its own weights, the ViT of mae and scratch-vit, else the CNN."""
        if base := base_of(init):
            return self.network(base)
        if init in self.networks:
            return self.networks[init]
        if init.startswith(TIMM):
            return Network("timm", init.removeprefix(TIMM), {}, max(self.size, TIMM_SIDE))
        return self.vit if init in ("mae", "scratch-vit") else self.cnn

    def options(self, init: str, protocol: str = "finetune", steps: int | None = None) -> dict[str, Any]:
        """Return the arguments of Classifier, without its backbone, for an init and a protocol.

        A fine-tuning of fewer than 300 steps gets a lower learning rate, down to a third: it starts from the linear
        probe, and large steps would leave that solution without time to come back.

        Args:
            init: any but pixels.
            protocol: one of ON_LABELS.
            steps: of the training; None gives the full learning rate.
        """
        network = self.network(init).name
        if init.startswith("scratch-"):
            return self.scratch[network]
        options = {**self.tune[network], **self.adapt.get(protocol, {})}
        share = 1.0 if steps is None else min(1.0, max(1 / 3, steps / FULL_STEPS))
        return {**options, "lr": options["lr"] * share}

    def steps_per_epoch(self, labels: int) -> int:
        """Return the steps of one epoch of a training on this number of labels."""
        return -(-labels // self.batch_size)

    def protocols(self, init: str, requested: Sequence[str]) -> list[str]:
        """Return those of `requested` that fit an init: from scratch everything trains, adapters need a plain ViT."""
        if init.startswith("scratch-"):
            return ["finetune"]
        return [name for name in requested if name not in PLAIN_VIT_PROTOCOLS or self.network(init).plain_vit]

    def side(self, init: str) -> int:
        """Return the side of an init's input in trainings, pixels."""
        return self.network(init).size or self.size

    def frozen_side(self, init: str) -> int:
        """Return the side at which an init's frozen features are taken, pixels.

        What a study pre-trains is measured as it was trained, from others' weights too.
        """
        own = not method_of(init) and (init.startswith(TIMM) or init in self.networks)
        return self.frozen_sides.get(init, self.frozen or self.side(init)) if own else self.side(init)

    def as_frozen(self, init: str) -> StudyPreset:
        """Return the preset with an init's network built for the side of its frozen features."""
        network, side = self.network(init), self.frozen_side(init)
        if "img_size" in network.args:
            network = replace(network, args={**network.args, "img_size": side})
        networks = {**self.networks, init: replace(network, size=side)}
        return replace(self, networks=networks) if side != self.side(init) else self

    def pretraining_options(self, init: str) -> dict[str, Any]:
        """Return the arguments of the method that pre-trains an init, without its backbone, and `batch_size`."""
        options = dict(getattr(self, method_of(init)))
        return {**options, "lr": options["lr"] * self.continued_lr} if base_of(init) else options

    def pretraining_fields(self, init: str) -> dict[str, Any]:
        """Return what the pre-training of an init reads of this preset, as plain data to hash; {} if it has none."""
        method = method_of(init)
        if not method:
            return {}
        return {
            "network": asdict(self.network(init)),
            "method": self.pretraining_options(init),
            "views": getattr(self, f"{method}_views"),
        }

    def training_fields(self, init: str, protocol: str = "finetune", steps: int | None = None) -> dict[str, Any]:
        """Return what a training on labels reads of this preset, as plain data for hashing; see `options`."""
        network = self.network(init)
        return {
            "network": asdict(network),
            "options": self.options(init, protocol, steps),
            "views": self.train_views[network.name],
            "batch_size": self.batch_size,
        }

    def fields(self, inits: Sequence[str], protocols: Sequence[str]) -> dict[str, Any]:
        """Return what the trainings of these inits read of this preset, by init, as plain data for hashing.

        Inits and protocols that are not used leave the hash as it is, so that adding one to the presets costs no study
        a training.
        """
        factor = {"scratch_factor": self.scratch_factor}
        return {
            init: {
                "pretraining": self.pretraining_fields(init),
                "training": {name: self.training_fields(init, name) for name in self.protocols(init, protocols)},
            }
            | (factor if init.startswith("scratch-") else {})
            for init in inits
        }


def preset_for(size: int, rotation: float = 0.0, *, gpu: bool = False, frozen: int | None = None) -> StudyPreset:
    """Return the preset for images of `size` pixels.

    Args:
        size: side of the networks' input in trainings, pixels; a multiple of 4 up to 64, of 16 above.
        rotation: all trainings, baselines too, see images rotated by U(-rotation, rotation) degrees.
        gpu: above 64 pixels the networks are ResNet-18 and ViT-S/16; without a GPU they are smaller, of at most 100
            million multiply-adds for an image of 96 pixels.
        frozen: side at which public weights, frozen, see the images, pixels; None: that of their trainings.
    """
    rotate = {"rotation": rotation} if rotation else {}
    if size <= SMALL:
        deep = {"stem": "small", "stem_type": "deep", "stem_width": 8}
        cnn = Network("cnn", "resnet18", {**deep, "layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]})
        vit = Network(
            "vit",
            "vit_tiny_patch16_224",
            {"img_size": size, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 2},
        )
        decoder = {"decoder_width": 64, "decoder_depth": 1, "decoder_heads": 4}
    elif not gpu:
        deep = {"stem_type": "deep", "stem_width": 16}
        cnn = Network("cnn", "resnet18", {**deep, "channels": [32, 64, 128, 256]})
        vit = Network("vit", "vit_tiny_patch16_224", {"img_size": size, "embed_dim": 192, "depth": 5, "num_heads": 3})
        decoder = {"decoder_width": 96, "decoder_depth": 2, "decoder_heads": 3}
    else:
        cnn = Network("cnn", "resnet18", {})
        vit = Network("vit", "vit_small_patch16_224", {"img_size": size})
        decoder = {"decoder_width": 192, "decoder_depth": 4, "decoder_heads": 6}
    color = {"brightness": 0.3, "contrast": 0.3}
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
        lejepa={
            "projection_width": 64,
            "projection_hidden": 256,
            "num_directions": 256,
            "lr": 2e-3,
            "weight_decay": 5e-4,
            "batch_size": 256,
            **adam,
        },
        simclr_views={"crop_scale": [0.3, 1.0], **rotate},
        mae_views={"crop_scale": [0.5, 1.0], **rotate},
        lejepa_views=dict(rotate),
        train_views={
            "cnn": {"crop_scale": [0.5, 1.0], **color, **rotate},
            "vit": {"crop_scale": [0.9, 1.0], **color, **rotate},
            "timm": {"crop_scale": [0.5, 1.0], **color, **rotate},
        },
        tune={
            "cnn": {"lr": 3e-3, "weight_decay": 0.05, "label_smoothing": 0.1, **adam},
            "vit": {"lr": 1e-3, "weight_decay": 0.05, "label_smoothing": 0.1, "layer_decay": 0.75, **adam},
            # batches of few labels spoil the statistics of batch norms (CHANGELOG.md has the figures)
            "timm": {"lr": 5e-4, "weight_decay": 0.05, "label_smoothing": 0.1, "freeze_batch_norm": True, **adam},
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
        frozen=frozen,
    )
