"""Tiny classifiers, their run folders and images for them, for tests of code that uses a model."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lit_vision.data.captions import train_tokenizer
from lit_vision.methods.captioner.captioner import Captioner
from lit_vision.methods.classifier.classifier import Classifier
from lit_vision.methods.generation.gan import GAN
from lit_vision.methods.image_text.image_text import ImageText

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "pool": "avg"}
CNN = {"stem": "small", "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
# the text tower of a small ImageText
TEXT = {"vocab_size": 300, "context_length": 12, "text_width": 16, "text_depth": 1, "text_heads": 2, "embed_width": 8}
NAMES = ["blue", "green", "red"]


def write_images(folder: Path, n: int = 12, seed: int = 0, size: int = 20) -> list[str]:
    """Write n PNGs to `red/`, `green/`, `blue/`, noise with one strong channel; return the names, sorted."""
    rng = np.random.default_rng(seed)
    names = []
    for i in range(n):
        channel = i % 3
        pixels = rng.integers(0, 120, (size + i % 2, size, 3), dtype=np.uint8)
        pixels[..., channel] += 130
        name = f"{NAMES[2 - channel]}/{i:03d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
        names.append(name)
    return sorted(names)


def make_classifier(kind: str = "vit", **more) -> Classifier:
    """Return a classifier with random weights of a spread that makes the classes differ."""
    torch.manual_seed(3)
    name, args = ("vit_tiny_patch16_224", VIT) if kind == "vit" else ("resnet18", CNN)
    settings = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25], "head_init_std": 1.0, **more}
    method = Classifier(name, 3, args, **settings).eval()
    method.metadata = {"task": "classification", "class_names": NAMES, "size": 16, "crop_pct": 1.0}
    return method


def write_run(folder: Path, method: Classifier | Captioner) -> Path:
    """Write a run folder with the method's checkpoint, as after training; return the folder."""
    checkpoint = {"state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams)}
    method.on_save_checkpoint(checkpoint)
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(checkpoint, path)
    return folder


def write_image_text_run(folder: Path, captions: list[str]) -> Path:
    """Write a run folder of ImageText with random weights and a tokenizer of these captions; return the folder."""
    tokenizer = train_tokenizer(captions, TEXT["vocab_size"], TEXT["context_length"])
    torch.manual_seed(0)
    method = ImageText("resnet18", CNN, **TEXT, tokenizer_json=tokenizer.json, mean=[0.4, 0.5, 0.6])
    stored = {"state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams), "card": {"size": 16}}
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({**stored, "pytorch-lightning_version": "2.6.6"}, path)
    return folder


def write_generator_run(folder: Path) -> Path:
    """Write a run folder of a GAN with random weights and the classes red and green; return the folder."""
    torch.manual_seed(0)
    method = GAN(8, 1, 2, noise_width=4, width=8, discriminator_width=8, multipliers=(1, 2))
    stored = {"state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams)}
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({**stored, "card": {"size": 8, "class_names": ["red", "green"]}}, path)
    return folder


CAPTIONER = {"prefix_grid": 2, "vocab_size": 300, "context_length": 8, "decoder_width": 16, "decoder_heads": 2}


def write_captioner_run(folder: Path, decoder: float | None, neighbor: float = 0.5) -> Path:
    """Write a run folder of Captioner with random weights and these values of CIDEr-D; return the folder.

    Without the decoder's value no validation has measured it.
    """
    tokenizer = train_tokenizer(["a red hat", "a blue shoe"], CAPTIONER["vocab_size"], CAPTIONER["context_length"])
    torch.manual_seed(0)
    method = Captioner("vit_tiny_patch16_224", VIT, **CAPTIONER, tokenizer_json=tokenizer.json, beams=2)
    with torch.no_grad():
        for parameter in (*method.image_prefix.parameters(), *method.caption_decoder.parameters()):
            parameter.normal_(0, 0.7)  # captions that differ
        method.caption_decoder.embedding.weight[3:36] = 0  # the tokenizer's first bytes: no letters
    method.metadata = {"task": "captioning", "size": 16, "crop_pct": 1.0}
    if decoder is not None:
        scores = {"images": 40, "decoder": {"cider": decoder}, "neighbor": {"cider": neighbor}}
        method.metadata["options"] = {"caption_scores": scores}
    return write_run(folder, method)
