"""Tiny restorers with random weights, as networks and as run folders."""

from pathlib import Path

import torch
from torch import nn

from lit_vision.methods import Restorer

RESNET = {"stem": "small", "layers": [1, 1, 1, 1], "channels": [4, 4, 4, 4]}


def make_restorer(kind: str = "dncnn", **more) -> Restorer:
    """Return a restorer whose last convolution is not zero, so that it changes images."""
    torch.manual_seed(0)
    options = {"dncnn": {"backbone_args": {"depth": 3, "width": 6}}, "resnet": {"backbone_args": RESNET}}[kind]
    backbone = "dncnn" if kind == "dncnn" else "resnet18"
    settings = {"degradations": ["gaussian_noise 25"], "decoder_width": 4, "mean": [0.5] * 3, "std": [0.25] * 3}
    method = Restorer(backbone=backbone, **{**settings, **options, **more}).eval()
    nn.init.normal_(method.pixels.last.weight, std=0.05)
    options_of_use = {"degraded": [], "degradations": method.hparams["degradations"]}
    method.metadata = {"task": "restoration", "size": method.fixed_size or 32, "options": options_of_use}
    return method


def write_restorer_run(folder: Path, **more) -> Path:
    """Write a run folder of a restorer, as after training; return the folder."""
    method = make_restorer(**more)
    checkpoint = {"state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams)}
    method.on_save_checkpoint(checkpoint)
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(checkpoint, path)
    return folder
