"""Every value in the papers' tables is compared with the value that a recipe gets from its settings and defaults."""

import importlib
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from lit_vision.data import ImageFolderDataModule
from lit_vision.data.views.params import make_view_spec
from lit_vision.methods import fine_tuning
from lit_vision.methods.classifier.classifier import Classifier
from lit_vision.methods.simclr.simclr import SimCLR
from lit_vision.optim import scaled_lr
from lit_vision.optim.lars import LARS

ROOT = Path(__file__).parents[2] / "experiments"

ADAMW_FT = {"optimizer": "adamw", "betas": (0.9, 0.999), "weight_decay": 0.05, "min_lr": 1e-6, "warmup_epochs": 5}
MIXED = {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "rand_augment": "rand-m9-mstd0.5-inc1", "loss": "ce"}
SGD = {"optimizer": "sgd", "nesterov": True, "momentum": 0.9, "weight_decay": 0.0, "warmup_epochs": 0, "min_lr": 0.0}
PLAIN = {
    **{"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "rand_augment": "", "random_erasing": 0.0, "copies": 1},
    **{"drop_path_rate": 0.0, "layer_decay": 1.0, "ema": None, "crop_scale": (0.08, 1.0), "flip": 0.5},
}

# He et al. 2022 (arXiv:2111.06377), Table 8: 1600 epochs and normalised pixels for the released encoders
MAE = {"optimizer": "adamw", "betas": (0.9, 0.95), "weight_decay": 0.05, "base_lr": 1.5e-4, "lr": 2.4e-3, "min_lr": 0.0}
MAE |= {"images": 4096, "warmup_epochs": 40, "epochs": 1600, "mask_ratio": 0.75, "norm_pix_loss": True}
MAE |= {"crop_scale": (0.2, 1.0), "flip": 0.5, "jitter": 0.0, "train_view": "mae", "img_size": 224}
MAE |= {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}
# the same, Table 9; and FINETUNE.md of its repository, which differs by model
TABLE_9 = {**ADAMW_FT, **MIXED, "base_lr": 1e-3, "lr": 4e-3, "images": 1024, "layer_decay": 0.75, "tune": "full"}
TABLE_9 |= {"random_erasing": 0.0, "copies": 1, "ema": None, "jitter": 0.0, "pool": "avg", "crop_pct": 0.875}
TUNED = {**TABLE_9, "random_erasing": 0.25}
# the same, Table 10; section A.1: batch norm without affine parameters; its code: lr outside the momentum buffer
PROBE = {**PLAIN, "optimizer": "lars", "momentum": 0.9, "weight_decay": 0.0, "base_lr": 0.1, "lr": 6.4, "images": 16384}
PROBE |= {"warmup_epochs": 10, "epochs": 90, "min_lr": 0.0, "lr_in_momentum": False, "head_norm": True}
PROBE |= {"tune": "linear", "pool": "token", "crop_pct": 0.875}
# the same, Table 11
SCRATCH = {**MIXED, "optimizer": "adamw", "betas": (0.9, 0.95), "weight_decay": 0.3, "base_lr": 1e-4, "images": 4096}
SCRATCH |= {"lr": 1.6e-3, "warmup_epochs": 20, "epochs": 300, "drop_path_rate": 0.1, "ema": 0.9999, "min_lr": 0.0}
SCRATCH |= {"random_erasing": 0.0, "layer_decay": 1.0, "copies": 1}
# Chen et al. 2020 (arXiv:2002.05709), section 2.3 and App. A
SIMCLR = {"optimizer": "lars", "momentum": 0.9, "weight_decay": 1e-6, "warmup_epochs": 10, "epochs": 1000}
SIMCLR |= {"projection_width": 128, "projection_layers": 2, "negatives": "global", "sync_batchnorm": True}
SIMCLR |= {"exact": True}  # HSV hue, clipped after each operation
SIMCLR |= {"crop_scale": (0.08, 1.0), "flip": 0.5, "jitter": 0.8, "grayscale": 0.2, "train_view": "simclr"}
# Wightman et al. 2021 (arXiv:2110.00476), Table 2
RSB = {"optimizer": "lamb", "loss": "bce", "warmup_epochs": 5, "images": 2048, "weight_decay": 0.02, "min_lr": 0.0}
RSB |= {"mixup": 0.1, "cutmix": 1.0, "label_smoothing": 0.0, "random_erasing": 0.0, "jitter": 0.0, "ema": None}
RSB |= {"crop_pct": 0.95, "head_init_std": 0.01}  # near PyTorch's 1 / sqrt(3 x 2048), which timm's ResNets have

VALUES = [
    ("mae/vitb16_in1k_1600ep", "MAE, Table 8", {**MAE, "backbone": "vit_base_patch16_224"}),
    ("mae/vitl16_in1k_1600ep", "MAE, Table 8", {**MAE, "backbone": "vit_large_patch16_224"}),
    ("mae/vith14_in1k_1600ep", "MAE, Table 8", {**MAE, "backbone": "vit_huge_patch14_224"}),
    ("mae/vitb16_in1k_100ep_finetune_paper", "MAE, Table 9", {**TABLE_9, "epochs": 100, "drop_path_rate": 0.1}),
    ("mae/vitl16_in1k_50ep_finetune_paper", "MAE, Table 9", {**TABLE_9, "epochs": 50, "drop_path_rate": 0.1}),
    ("mae/vith14_in1k_50ep_finetune_paper", "MAE, Table 9", {**TABLE_9, "epochs": 50, "drop_path_rate": 0.2}),
    (
        "mae/vitb16_in1k_100ep_finetune",
        "FINETUNE.md",
        {**TUNED, "epochs": 100, "drop_path_rate": 0.1, "base_lr": 5e-4, "lr": 2e-3, "layer_decay": 0.65},
    ),
    ("mae/vitl16_in1k_50ep_finetune", "FINETUNE.md", {**TUNED, "epochs": 50, "drop_path_rate": 0.2}),
    ("mae/vith14_in1k_50ep_finetune", "FINETUNE.md", {**TUNED, "epochs": 50, "drop_path_rate": 0.3}),
    ("mae/vitb16_in1k_90ep_linear", "MAE, Table 10", PROBE),
    ("mae/vitb16_in1k_300ep_scratch", "MAE, Table 11", SCRATCH),
    (
        "simclr/resnet50_in1k_1000ep",
        "SimCLR, section 2.3, App. A and B.1",
        {**SIMCLR, "images": 4096, "base_lr": 0.3, "lr": 4.8, "temperature": 0.1, "blur": 0.5, "brightness": 0.8}
        | {"contrast": 0.8, "saturation": 0.8, "hue": 0.2, "img_size": 224, "stem": "imagenet"},
    ),
    (
        "simclr/resnet50_cifar10_1000ep",
        "SimCLR, App. B.9",
        {**SIMCLR, "images": 1024, "base_lr": 1.0, "lr": 4.0, "temperature": 0.5, "blur": 0.0, "brightness": 0.4}
        | {"contrast": 0.4, "saturation": 0.4, "hue": 0.1, "img_size": 32, "stem": "small"},
    ),
    (
        "simclr/resnet50_in1k_90ep_linear",
        "SimCLR, App. B.6",
        {**PLAIN, **SGD, "base_lr": 0.1, "lr": 1.6, "images": 4096, "epochs": 90, "tune": "linear", "crop_pct": 0.875},
    ),
    (
        "simclr/resnet50_cifar10_100ep_linear",
        "google-research/simclr, README",
        {**PLAIN, **SGD, "nesterov": False, "lr": 0.1, "images": 512, "epochs": 100, "tune": "linear"},
    ),
    (
        "simclr/resnet50_in1k1pct_60ep_finetune",
        "SimCLR, App. B.5",
        {**PLAIN, **SGD, "base_lr": 0.05, "lr": 0.8, "images": 4096, "epochs": 60, "tune": "full", "crop_pct": 0.875},
    ),
    (
        "simclr/resnet50_in1k10pct_30ep_finetune",
        "SimCLR, App. B.5",
        {**PLAIN, **SGD, "base_lr": 0.05, "lr": 0.8, "images": 4096, "epochs": 30, "tune": "full", "crop_pct": 0.875},
    ),
    (  # its learning rate, decay and epochs are searched or follow from the data set
        "simclr/resnet50_transfer_finetune",
        "SimCLR, App. B.8",
        {**PLAIN, **SGD, "images": 256, "tune": "full", "img_size": 224},
    ),
    (
        "classify/resnet50_in1k_100ep",
        "ResNet strikes back, A3",
        {**RSB, "epochs": 100, "lr": 8e-3, "img_size": 160, "rand_augment": "rand-m6-mstd0.5-inc1"}
        | {"drop_path_rate": 0.0, "copies": 1},
    ),
    (
        "classify/resnet50_in1k_300ep",
        "ResNet strikes back, A2",
        {**RSB, "epochs": 300, "lr": 5e-3, "img_size": 224, "rand_augment": "rand-m7-mstd0.5-inc1"}
        | {"drop_path_rate": 0.05, "copies": 3},
    ),
    (
        "classify/vitb16_in1k_300ep",
        "DeiT (arXiv:2012.12877), Table 9, and its repository",
        {**MIXED, "optimizer": "adamw", "lr": 1e-3, "images": 1024, "weight_decay": 0.05, "epochs": 300, "copies": 3}
        | {"warmup_epochs": 5, "min_lr": 1e-5, "drop_path_rate": 0.1, "random_erasing": 0.25, "ema": 0.99996}
        | {"betas": (0.9, 0.999), "layer_decay": 1.0, "crop_pct": 0.875},
    ),
]


def read(recipe: str) -> dict:
    return yaml.safe_load((ROOT / f"{recipe}.yaml").read_text())


def with_defaults(part: dict) -> dict:
    """Return a class's arguments: the recipe's and the defaults."""
    module, name = part["class_path"].rsplit(".", 1)
    parameters = inspect.signature(getattr(importlib.import_module(module), name).__init__).parameters
    defaults = {key: p.default for key, p in parameters.items() if p.default is not p.empty}
    unknown = set(part["init_args"]) - set(parameters)
    assert not unknown
    return defaults | part["init_args"]


def effective(recipe: str) -> dict:
    """Return the values of a run of the recipe, flat; `lr` at its peak, `images` of one step."""
    settings = read(recipe)
    trainer, model, data = settings["trainer"], with_defaults(settings["model"]), with_defaults(settings["data"])
    spec = make_view_spec(
        data["train_view"], data["img_size"], **ImageFolderDataModule(**settings["data"]["init_args"]).train_options
    )
    images = data["batch_size"] * trainer["devices"] * trainer["num_nodes"] * trainer.get("accumulate_grad_batches", 1)
    averages = [c for c in trainer.get("callbacks", ()) if c["class_path"].endswith(".EMA")]
    body = {"drop_path_rate": 0.0, "stem": "imagenet", **(model["backbone_args"] or {})}
    found = {**vars(spec), **body, **{k: v for k, v in data.items() if k not in vars(spec)}, **model}
    found |= {"crop_pct": data["crop_pct"], "images": images, "epochs": trainer["max_epochs"]}
    found |= {"lr": scaled_lr(model.get("base_lr"), model.get("lr"), images)}
    found |= {"ema": averages[0]["init_args"]["decay"] if averages else None}
    found |= {"sync_batchnorm": trainer.get("sync_batchnorm", False)}
    return {"min_lr": 0.0, **found}  # SimCLR ends at 0 and takes no other


def test_every_paper_scale_recipe_is_here() -> None:
    rooms = [p for room in ("mae", "simclr", "classify") for p in (ROOT / room).glob("*.yaml")]
    named = {f"{p.parent.name}/{p.stem}" for p in rooms if any(w in p.name for w in ("in1k", "cifar", "transfer"))}
    assert named == {recipe for recipe, _, _ in VALUES}


@pytest.mark.parametrize(("recipe", "source", "values"), VALUES, ids=[recipe for recipe, _, _ in VALUES])
def test_values_are_the_papers(recipe: str, source: str, values: dict) -> None:
    found = effective(recipe)
    values = values if "cifar" in recipe else values | {"quick": False}  # photographs: decoded whole, Pillow's bicubic
    for key, value in values.items():
        got = tuple(found[key]) if isinstance(found[key], list) else found[key]
        got = "" if value == "" and got is None else got
        assert got == (pytest.approx(value) if isinstance(value, float) else value), f"{key} ({source})"


# recipe: pairs of an epoch, steps of the warm-up and of the run, and values of ImageText and its data
PAIRS = {
    "vitb16_laion400m_32ep": (  # Radford et al. 2021, section 2.5 and its tables of hyper-parameters
        (400e6, 2000, 32 * 400e6 / 32768),
        {"loss": "softmax", "vocab_size": 49408, "context_length": 77, "text_width": 512, "text_depth": 12}
        | {"text_heads": 8, "embed_width": 512, "betas": [0.9, 0.98], "lr": 5e-4, "weight_decay": 0.2, "flip": 0.0},
    ),
    "vitb16_laion400m_32ep_siglip": (  # Zhai et al. 2023; what is not checked stands in the recipe's header
        (400e6, 0.03 * 32 * 400e6 / 32768, 32 * 400e6 / 32768),
        {"loss": "sigmoid", "text_causal": False, "embed_width": 768, "mean": [0.5, 0.5, 0.5]},
    ),
    "vitb16_coco_247ep_lit": (  # big_vision, lit_coco.py
        (82783, 150, 5000),
        {"loss": "softmax", "lock_image": True, "context_length": 16, "lr": 1e-3, "weight_decay": 0.01, "flip": 0.5}
        | {"embed_width": 768},
    ),
}


@pytest.mark.parametrize("recipe", [p.stem for p in sorted((ROOT / "image_text").glob("*.yaml"))])
def test_values_of_images_and_captions_are_the_sources(recipe: str) -> None:
    (pairs, warmup, steps), values = PAIRS[recipe]
    settings = read(f"image_text/{recipe}")
    trainer, model, data = settings["trainer"], with_defaults(settings["model"]), with_defaults(settings["data"])
    assert values == {key: {**data, **model}[key] for key in values}
    assert data["context_length"] == model["context_length"]
    images = data["batch_size"] * trainer["devices"] * trainer["num_nodes"]
    epoch = pairs / images
    assert trainer["max_epochs"] * epoch == pytest.approx(steps, rel=0.02)
    assert model["warmup_epochs"] * epoch == pytest.approx(warmup, rel=0.02)
    cost = re.search(r"# cost:.*= ([\de.]+);", (ROOT / f"image_text/{recipe}.yaml").read_text())
    giga = {"vitb16_laion400m_32ep": 41.09e9 / 2 * 3, "vitb16_laion400m_32ep_siglip": 46.44e9 / 2 * 3}
    exact = giga.get(recipe, 17.6e9 + 16 * 86e6 * 3) * pairs * trainer["max_epochs"]
    assert float(cost[1]) == pytest.approx(exact, rel=0.02)


# 10^9 multiply-adds of one image, forward; of MAE encoder and decoder (tests/methods/test_published_facts.py: formulas)
GIGAS = {
    "vit_base_patch16_224": (17.563, 9.781),
    "vit_large_patch16_224": (61.554, 20.756),
    "vit_huge_patch14_224": (167.294, 48.562),
}


def counted(model: dict, size: int) -> float:
    """Return 10^9 multiply-adds of a ResNet-50 and its head, for one image."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        if model["class_path"].endswith("SimCLR"):
            method = SimCLR("resnet50", model["init_args"].get("backbone_args"))
            method.projection(method.backbone(torch.empty(2, 3, size, size)))
            return counter.get_total_flops() / 4e9
        method = Classifier("resnet50", model["init_args"]["num_classes"], model["init_args"].get("backbone_args"))
        method.eval()(torch.empty(1, 3, size, size))
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize("recipe", [recipe for recipe, _, _ in VALUES])
def test_the_cost_in_the_header_is_its_arithmetic(recipe: str) -> None:
    """An image's cost x 3 with backward (1 if the backbone is frozen), twice that for two views, x images x epochs."""
    header = next(row for row in (ROOT / f"{recipe}.yaml").read_text().splitlines() if row.startswith("# cost:"))
    pattern = r"([\d.]+) G multiply-adds an image x (\d) \(.*?\) x ([\d,]+) images x (\d+) (epochs|steps) = ([\de.]+) "
    gigas, times, images, rounds, unit, total = re.search(pattern, header).groups()
    settings = read(recipe)
    model, size = settings["model"]["init_args"], settings["data"]["init_args"]["img_size"]
    name = settings["model"]["class_path"].rsplit(".", 1)[-1]
    vit = GIGAS.get(model["backbone"])
    assert float(gigas) == pytest.approx(vit[name == "MAE"] if vit else counted(settings["model"], size), abs=0.006)
    assert int(times) == {"MAE": 3, "SimCLR": 6}.get(name, 1 if model.get("tune") == "linear" else 3)
    assert unit == "steps" or int(rounds) == settings["trainer"]["max_epochs"]
    exact = float(gigas) * 1e9 * int(times) * int(images.replace(",", "")) * int(rounds)
    assert float(total) == pytest.approx(exact, rel=0.06)


def test_the_probes_optimizer_has_the_learning_rate_outside_the_momentum_buffer(capsys) -> None:
    """The optimizer of MAE's probe; SimCLR's, and a Classifier's default, is the other form."""
    data = SimpleNamespace(batches_per_epoch=4, global_batch_size=16384)
    trainer = SimpleNamespace(datamodule=data, max_epochs=90, limit_train_batches=1.0, accumulate_grad_batches=1)
    trainer.precision, trainer.is_global_zero = "32-true", True
    given = read("mae/vitb16_in1k_90ep_linear")["model"]["init_args"]
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    given |= {"backbone_checkpoint": None, "backbone_args": {**given["backbone_args"], **small}}
    for arguments, outside in ((given, True), ({**given, "lr_in_momentum": True}, False)):
        model = Classifier(**arguments)
        attached = SimpleNamespace(trainer=trainer, hparams=model.hparams, named_parameters=model.named_parameters)
        optimizer = fine_tuning.configure_optimizer(attached)["optimizer"]
        assert type(optimizer) is LARS
        assert all(group["lr_in_momentum"] is not outside for group in optimizer.param_groups)
        assert all(group["initial_lr"] == pytest.approx(6.4) for group in optimizer.param_groups)
