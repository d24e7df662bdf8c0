"""Networks of the table of compression: trained, pruned, distilled, exported and quantized, each file made once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from table_script import ROOT

if TYPE_CHECKING:
    from lit_vision.methods import Classifier
    from lit_vision.predict.accuracy import AccuracyCheck

SEEDS, SHOTS, CLASSES, SIDE = 5, 20, 18, 96
PATCHES = "data/patches"
BATCH_SIZE = 10
LITE0, LITE0_ARGS = "tf_efficientnet_lite0", {"bn_momentum": 0.1}  # its own, 0.01, is too slow for a short training
RESNET, RESNET_ARGS = (
    "resnet18",
    {"stem_type": "deep", "stem_width": 8, "layers": [1] * 4, "channels": [16, 32, 64, 128]},
)
# a teacher of one epoch is unsure: of (0.9, 4), (0.5, 2), (0.9, 1) and this, tried on one seed, only this one helps
TEACHING = {"logit_weight": 0.5, "temperature": 1.0}
KEPT = {30: 0.7, 50: 0.5, 70: 0.3}  # percent of the channels pruned: share that stays
NETWORKS = {  # in the order of the table: text, epochs of its own training, learning rate
    "full": ("EfficientNet-Lite0, the teacher", 1, 1e-3),
    **{f"pruned-{percent}": (f"{percent} % of its channels pruned", 2, 2e-3) for percent in KEPT},
    "pruned-50-taught": ("50 % pruned, then taught by the teacher", 2, 2e-3),
    "small": ("small ResNet, labels alone", 5, 3e-3),
    "small-taught": ("small ResNet, taught by the teacher", 5, 3e-3),
}
QUANTIZED = ("full", "pruned-50-taught", "small-taught")
CALIBRATION = 60  # images
FOLDER = ROOT / "runs" / "table-compression"


def train(method: Classifier, name: str, seed: int, out: Path) -> None:
    """Train a network on the labeled patches of a seed and write its checkpoint."""
    from lightning.pytorch import Trainer

    from lit_vision.data import ImageFolderDataModule

    view = {"img_size": SIDE, "train_view": "train", "crop_scale": [0.5, 1.0], "crop_pct": 1.0, "num_workers": 0}
    data = ImageFolderDataModule(PATCHES, batch_size=BATCH_SIZE, shots=SHOTS, label_seed=seed, seed=seed, **view)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=NETWORKS[name][1],
        limit_val_batches=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        **quiet,
    )
    trainer.fit(method, datamodule=data)
    trainer.save_checkpoint(out)


def network_file(seed: int, name: str) -> Path:
    """Return the file of a network, which is made first if it is missing, and what it is made of before it."""
    import torch

    from lit_vision.methods import Classifier, Distiller, lightning_module
    from lit_vision.predict.models import load_method

    path = FOLDER / f"seed-{seed}" / f"{name}.ckpt"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"lr": NETWORKS[name][2], "warmup_epochs": 0.2, "head_init_std": 0.01}
    teacher = {"teacher": str(path.with_name("full.ckpt")), **TEACHING}
    torch.manual_seed(seed)
    if name == "full":
        method = Classifier(LITE0, CLASSES, LITE0_ARGS, backbone_checkpoint=LITE0, **settings)
    elif name == "small":
        method = Classifier(RESNET, CLASSES, RESNET_ARGS, **settings)
    elif name == "small-taught":
        network_file(seed, "full")
        method = Distiller(RESNET, CLASSES, backbone_args=RESNET_ARGS, **teacher, **settings)
    else:
        start = pruned_file(seed, int(name.split("-")[1]))
        network, _ = load_method(start)
        if name.endswith("taught"):
            method = Distiller(
                LITE0, CLASSES, backbone_args=LITE0_ARGS, backbone_checkpoint=str(start), **teacher, **settings
            )
            method.load_state_dict(network.state_dict())
        else:
            network.hparams["lr"] = settings["lr"]
            method = lightning_module(network).train()
    train(method, name, seed, path)
    return path


def pruned_file(seed: int, percent: int) -> Path:
    """Return the file of the teacher pruned by some percent, not trained further."""
    from lit_vision.convert.prune import prune_model

    path = FOLDER / f"seed-{seed}" / f"untrained-{percent}.safetensors"
    if not path.exists():
        print(prune_model(network_file(seed, "full"), KEPT[percent], path), flush=True)
    return path


def exported(seed: int, name: str) -> dict[str, Path]:
    """Return the .onnx and .xml of a network, checked against torch to 1e-4; they are made first if missing."""
    import openvino

    from lit_vision.convert.export import check_parity, exported_program, write_onnx
    from lit_vision.convert.quantize import save_openvino
    from lit_vision.predict.models import load_method, load_model
    from lit_vision.predict.tasks import inference_network

    checkpoint = network_file(seed, name)
    paths = {"onnx": checkpoint.with_suffix(".onnx"), "openvino": checkpoint.with_suffix(".xml")}
    if not paths["openvino"].exists():
        method, metadata = load_method(checkpoint)
        network = inference_network(method, metadata.task)
        write_onnx(exported_program(network, metadata), metadata, paths["onnx"])
        save_openvino(openvino.convert_model(str(paths["onnx"])), metadata, paths["openvino"])
        for path in paths.values():
            check_parity(network, metadata, load_model(path, "cpu"))
    return paths


def quantized(seed: int, name: str, check: AccuracyCheck) -> dict[str, Path]:
    """Return the int8 .xml of a network, and of the first seed the .onnx too; their metadata have the accuracies."""
    import shutil

    from lit_vision.convert.quantize import artifact_files, quantize
    from lit_vision.predict.models import load_method

    made = {}
    for form, path in exported(seed, name).items():
        if form == "onnx" and seed > 0:  # NNCF takes a minute for one
            continue
        made[form] = path.with_name(f"{name}-int8{path.suffix}")
        if made[form].exists():
            continue
        _, metadata = load_method(network_file(seed, name))
        place = path.with_name(f"unfinished{path.suffix}")
        for source, target in zip(artifact_files(path), artifact_files(place)):
            shutil.copy(source, target)
        print(f"{name}: {quantize(place, metadata, form, check, CALIBRATION)}", flush=True)
        for source, target in zip(artifact_files(place), artifact_files(made[form])):
            source.rename(target)
    return made
