"""Zero-shot classification of photographs by models that saw drawings and their words only; few labels beside it.

The photographs are 12 classes of Debian's tuxpaint-stamps-default. They are under the GPL-2: numbers only, no picture
and no weight that was trained on them is published.
N photographs, K classes, E width of the common space.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from frozen_sets import FrozenSet, read_frozen
from table_script import Tally
from torch import Tensor

from lit_vision.data.splits import sample_fraction
from lit_vision.evaluation.linear import logistic_regression
from lit_vision.io.atomic import write_json
from lit_vision.methods.image_text.image_text import ImageText
from lit_vision.methods.image_text.prompt_learning import LearnedPrompts, learn_contexts
from lit_vision.predict.zero_shot import class_vectors
from lit_vision.results.schema import SCHEMA, make_cell, read_result, write_result
from lit_vision.study.cells import hash_inputs, read_record
from lit_vision.study.weight_files import redirect_output
from studies import words_rows
from studies.words_baselines import PENALTIES, captions_of, mean_vectors, quality, recalls, ridge
from studies.words_runs import encode, fit
from studies.words_sets import FOLDER, SETS, WordSet, draw_split, join_sets, read_set, text_encoder, text_vectors
from studies.words_tables import PHOTOGRAPHS

SOURCES = {"emoji": ("emoji",), "emoji + clipart": ("emoji", "clipart")}
PROMPTS = {
    "one prompt": ("a photo of a {}.",),
    "ensemble of 6": ("a photo of a {}.", "a picture of a {}.", "a {}.", "{}", "a small {}.", "one {} on white."),
}
SHOTS, SEEDS, HELD_OUT = (1, 2, 4, 8, 16), 5, 0.3
CONTEXTS, COOP_STEPS, COOP_LR = 4, 20, 0.02  # all labeled images in each step
FROZEN = words_rows.ROWS[0]


def photographs() -> FrozenSet | None:
    """Return the photographs' features and labels, all of them in `features`; None without the package."""
    return read_frozen("stamps", "lite0")


@cache
def source(name: str) -> WordSet:
    """Return the drawings that a model is trained on."""
    sets = [read_set(one, "lite0") for one in SOURCES[name]]
    return join_sets([one for one in sets if one is not None])


def ridge_vectors(words: WordSet, x: np.ndarray) -> Tensor:
    """Return (N, E) of features x, by ridge regression from all drawings; its penalty is chosen on a tenth of them."""
    rows, targets = draw_split(words.concepts, "concept", 0), mean_vectors(words)

    def value(penalty: float) -> float:
        predicted = ridge(words.features[rows["train"]], targets[rows["train"]], words.features[rows["val"]], penalty)
        return quality(recalls(predicted, words.texts[captions_of(rows["val"], words)], rows["val"], words))

    return torch.from_numpy(ridge(words.features, targets, x, max(PENALTIES, key=value)))


@cache
def chosen_steps(name: str) -> int:
    """Return the length of the training of the projections, chosen on a tenth of the drawings."""
    words, found = source(name), {}
    rows = draw_split(words.concepts, "concept", 0)
    for steps in FROZEN.steps:
        module = fit(FROZEN, words, rows["train"], steps, 0)
        found[steps] = quality(recalls(*encode(FROZEN, module, words, rows["val"], None), rows["val"], words))
    return max(found, key=lambda steps: found[steps])


def train(name: str, seed: int) -> ImageText:
    """Return the projections of both frozen towers, trained on all drawings of a source."""
    words = source(name)
    return fit(FROZEN, words, np.arange(len(words.concepts)), chosen_steps(name), seed)


def prompt_vectors(classes: list[str], prompts: str, module: ImageText | None) -> Tensor:
    """Return (K, E): the classes' vectors of MiniLM, projected by a model if there is one."""

    def encode_texts(texts: list[str]) -> Tensor:
        vectors = torch.from_numpy(text_vectors(texts))
        return vectors if module is None else module.encode_tokens(vectors, vectors > 0)

    with torch.no_grad():
        return class_vectors(encode_texts, classes, PROMPTS[prompts])


def accuracy(pictures: Tensor, vectors: Tensor, labels: np.ndarray) -> float:
    """Return the share of pictures whose most similar class vector is that of their class."""
    similarity = F.normalize(pictures.float(), dim=1) @ vectors.float().T
    return float((similarity.argmax(1).numpy() == labels).mean())


def with_text_tower(module: ImageText) -> ImageText:
    """Return a model with MiniLM itself in the place of its stored vectors, to learn contexts before it."""
    whole = words_rows.build(words_rows.Row("lite0", "", "minilm", (), 1, 1e-3, {}), 0, start=module)
    whole.hparams.tokenizer_json = (text_encoder() / "tokenizer.json").read_text(encoding="utf-8")
    return whole.requires_grad_(False).eval()


def coop(whole: ImageText, classes: list[str], x: Tensor, labels: np.ndarray, seed: int) -> Tensor:
    """Return (K, E): class vectors with learned contexts.

    Unlike the paper: 4 contexts, 20 steps, each of all labeled images at ten times its learning rate, no augmentation.

    Args:
        whole: of `with_text_tower`.
        classes: K names.
        x: (n, E) unit vectors of the labeled images.
        labels: (n,).
        seed: of the contexts and the order.
    """
    prompts = LearnedPrompts(whole, classes, CONTEXTS, seed=seed)
    learn_contexts(prompts, x, torch.from_numpy(labels), COOP_STEPS, COOP_LR, batch_size=len(labels), seed=seed)
    with torch.no_grad():
        return prompts.class_vectors()


def draw(labels: np.ndarray, seed: int) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Return {shots: labeled rows}, nested, and the rows of the test; small classes give what they have left."""
    test = sample_fraction(labels, HELD_OUT, seed)
    rest = np.random.default_rng(seed).permutation(np.setdiff1d(np.arange(len(labels)), test))
    of_class = [rest[labels[rest] == k] for k in range(labels.max() + 1)]
    return {k: np.concatenate([rows[:k] for rows in of_class]) for k in SHOTS}, test


def zero_shot_cells(x: np.ndarray, labels: np.ndarray, classes: list[str], seeds: int) -> list[dict[str, Any]]:
    """Return cells of the accuracy on all photographs, of ridge regression and of ImageText on frozen towers."""
    cells = []
    for name in SOURCES:
        words = source(name)
        count = len(words.concepts)
        regressed, modules = ridge_vectors(words, x), [train(name, seed) for seed in range(seeds)]
        for prompts in PROMPTS:
            value = accuracy(regressed, prompt_vectors(classes, prompts, None), labels)
            cells.append(make_cell(name, f"ridge, {prompts}", count, [value], shots=0, test="all"))
            with torch.no_grad():
                values = [
                    accuracy(one(torch.from_numpy(x)), prompt_vectors(classes, prompts, one), labels) for one in modules
                ]
            cells.append(make_cell(name, f"ImageText, {prompts}", count, values, shots=0, test="all"))
    return cells


def few_shot_values(
    x: np.ndarray, labels: np.ndarray, classes: list[str], seed: int, coop_shots: Sequence[int]
) -> dict[str, float]:
    """Return {"<method>, <shots>": accuracy} on the test photographs of one draw."""
    rows, test = draw(labels, seed)
    module = train("emoji + clipart", seed)
    with torch.no_grad():
        z = module(torch.from_numpy(x))
    found = {
        f"zero-shot, {prompts}; 0": accuracy(z[test], prompt_vectors(classes, prompts, module), labels[test])
        for prompts in PROMPTS
    }
    whole = with_text_tower(module)
    for shots, chosen in rows.items():
        probe = logistic_regression(x[chosen], labels[chosen], x[test], len(classes), seed=seed)
        found[f"logistic regression; {shots}"] = float((probe.predictions == labels[test]).mean())
        if shots in coop_shots:
            vectors = coop(whole, classes, z[chosen], labels[chosen], seed)
            found[f"CoOp; {shots}"] = accuracy(z[test], vectors, labels[test])
    return found


def make() -> None:
    """Measure everything and write the results file; draws that are finished are found again."""
    images = photographs()
    if images is None:
        print("photographs: tuxpaint-stamps-default_*.deb is not in runs/; apt-get download tuxpaint-stamps-default")
        return
    x, labels, start = *_all(images), time.perf_counter()
    with redirect_output(FOLDER / "cells" / "training.log"):
        cells = zero_shot_cells(x, labels, images.classes, SEEDS)
        draws = []
        for seed in range(SEEDS):
            path = FOLDER / "cells" / f"photographs-{seed}.json"
            drawings = [source(name).fingerprint for name in SOURCES]
            inputs = hash_inputs(images.fingerprint, drawings, FROZEN.training, PROMPTS, CONTEXTS, COOP_STEPS, COOP_LR)
            record = read_record(path)
            if record.get("inputs") != inputs:
                found = few_shot_values(x, labels, images.classes, seed, SHOTS)
                write_json(path, record := {"schema": SCHEMA, "inputs": inputs, "values": found})
            draws.append(record["values"])
    for key in draws[0]:
        method, shots = key.split("; ")
        values = [one[key] for one in draws]
        count = len(draw(labels, 0)[0][int(shots)]) if int(shots) else 0
        cells.append(make_cell("emoji + clipart", method, count, values, shots=int(shots), test="held out"))
    tests = len(draw(labels, 0)[1])
    write_result(
        PHOTOGRAPHS,
        recipe="table-words",
        cells=cells,
        seconds=round(time.perf_counter() - start, 1),
        data_fingerprint=images.fingerprint,
        license="GPL-2 (photographs): numbers only",
        photographs=len(labels),
        test_images=tests,
        largest_class=float(np.bincount(labels).max() / len(labels)),
        class_names=images.classes,
    )


def verify(tally: Tally) -> int:
    """Measure the first model and draw again, CoOp at one shot only; return the number of committed values."""
    images = photographs() if PHOTOGRAPHS.exists() else None
    if images is None or any(read_set(name, "lite0") is None for name in SETS):
        return 0
    result = read_result(PHOTOGRAPHS)
    x, labels = _all(images)
    with redirect_output(FOLDER / "verify.log"):
        measured = {
            ("all", one["init"], one["protocol"], 0): one["values"][0]
            for one in zero_shot_cells(x, labels, images.classes, 1)
        }
        for key, value in few_shot_values(x, labels, images.classes, 0, SHOTS[:1]).items():
            method, shots = key.split("; ")
            measured["held out", "emoji + clipart", method, int(shots)] = value
    for cell in result["cells"]:
        key = cell["test"], cell["init"], cell["protocol"], cell["shots"]
        if key in measured:
            tally.add(f"photographs {' '.join(map(str, key))}", cell["values"][0], measured[key], 0.03)
    return sum(len(cell["values"]) for cell in result["cells"])


def _all(images: FrozenSet) -> tuple[np.ndarray, np.ndarray]:
    """Return features and labels of all photographs; the stored split is not used."""
    return np.concatenate([images.features, images.test]), np.concatenate([images.labels, images.test_labels])
