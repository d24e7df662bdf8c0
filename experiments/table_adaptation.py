"""The adaptation table: what trains of a pre-trained ViT, against accuracy, parameters, memory and time, at 1 %, 10 % and all labels.

One ViT is pre-trained by MAE on the turned garments without labels (the study's recipe, the study's images). Then each protocol learns
from the same labels, five seeds (label subset, initialisation, order): all of it from the linear probe's head on, for as many steps.
Every finished piece is on disk under runs/table-adaptation/, so a stopped run goes on. Prints from experiments/results/adaptation-desk.json.
Run: make table-adaptation SCALE=desk        Measure the committed weights again: make verify-adaptation
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ablation import DATA, RESULTS, ROOT, WEIGHTS
from ablation_runs import frozen_features, probe
from table_script import Tally, run_table

NAME, START, ROTATION = "adaptation", "mae", 180.0
EPOCHS = 40  # of the pre-training
LABELS, SEEDS = ("1%", "10%", "all"), 5
STEPS = 320  # of each training on labels, rounded up to whole epochs
KEPT = ((0, 800),)  # (seed, labels) whose weights are committed
# protocol: what it changes of the study's fine-tuning; None is the probe itself
PROTOCOLS: dict[str, dict[str, Any] | None] = {
    "linear": None,
    "finetune": {},
    "last-1": {"tune": "last-1"},
    "head+norm": {"tune": "head+norm", "lr": 3e-3, "layer_decay": 1.0},
    "bias": {"tune": "bias", "lr": 3e-3, "layer_decay": 1.0},
    "lora": {"tune": "lora", "lr": 3e-3, "layer_decay": 1.0, "lora_targets": ["qkv"]},
    "lora-all": {"tune": "lora", "lr": 3e-3, "layer_decay": 1.0, "lora_targets": ["qkv", "proj", "mlp"]},
    "prompt-shallow": {"tune": "prompt-shallow", "lr": 3e-3, "layer_decay": 1.0, "prompt_length": 8},
    "prompt-deep": {"tune": "prompt-deep", "lr": 3e-3, "layer_decay": 1.0, "prompt_length": 8},
}


def recipe_of(size: int) -> Any:
    """The study's recipe with this table's protocols."""
    from lit_vision.study.recipes import recipe_for

    changes = {name: options for name, options in PROTOCOLS.items() if options is not None}
    return replace(recipe_for(size, ROTATION), adapt=changes)


def cost_of(protocol: str, images: Any, recipe: Any, weights: Path) -> dict[str, float]:
    """What a protocol trains and holds: trainable parameters, and bytes of one training step at the full batch.

    Bytes: of the weights, of the gradients and AdamW's two moments of what trains, and of the tensors kept for the backward pass
    (each storage once, the weights themselves apart). The same on every machine, where a process's peak is not.
    """
    import torch

    from lit_vision.study.training import classification

    rows = images.subset(min(800, int((images.labels >= 0).sum())), 0)
    module, data = classification(START, images, rows, recipe, 0, weights, protocol=protocol_of(protocol))
    if PROTOCOLS[protocol] is None:
        for parameter in module.backbone.parameters():
            parameter.requires_grad_(False)
    own = {p.untyped_storage().data_ptr() for p in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = module.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module.log = lambda *args, **kwargs: None
        loss = module.training_step(batch, 0)
        activations = sum(kept.values())
    loss.backward()
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    weights_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
    return {
        "parameters": trained,
        "share": trained / sum(p.numel() for p in module.parameters()),
        "bytes": weights_bytes + 3 * 4 * trained + activations,
        "activation_bytes": activations,
    }


def protocol_of(name: str) -> str:
    """The name under which the recipe holds a protocol's changes; the probe is costed as a head on a frozen body."""
    return name if PROTOCOLS[name] is not None else "finetune"


class Runner:
    """Trains and measures what is not on disk yet.

    Args:
        images: from `lit_vision.study.images.read_images`.
        folder: under runs/.
        report: `lit_vision.study.progress.Reporter`.
        epochs, steps, seeds, labels: see the constants.
    """

    def __init__(self, images, folder: Path, report, epochs=EPOCHS, steps=STEPS, seeds=SEEDS, labels=LABELS) -> None:
        from lit_vision.study.cells import CellStore, digest, parse_labels

        self.images, self.folder, self.report = images, folder, report
        self.epochs, self.steps, self.seeds = epochs, steps, seeds
        self.labels = parse_labels(",".join(labels), images.per_class)
        self.recipe = recipe_of(images.size)
        self.store, self.base = CellStore(folder / "cells"), digest(images.fingerprint, images.size)

    def pretrain(self) -> tuple[Path, str, float]:
        """(weights, their sha256, seconds): trained now, or found from an earlier run of the same recipe."""
        from lit_vision.backbones.weights import save_backbone, sha256_of
        from lit_vision.evaluation.results import write_json
        from lit_vision.study.cells import digest
        from lit_vision.study.training import pretraining, quiet, train

        recipe = self.recipe
        inputs = digest(self.base, self.epochs, recipe.mae, recipe.mae_views, recipe.network(START).args)
        weights = self.folder / "weights" / "mae-0.safetensors"
        note = weights.with_suffix(".json")
        known = json.loads(note.read_text()) if note.exists() and weights.exists() else {}
        if known.get("inputs") != inputs or known.get("sha256") != sha256_of(weights):
            with quiet(self.folder / "table.log"):
                module, data = pretraining(START, self.images, recipe, 0)
                self.report.begin("pre-training", data.batch_size)
                trained = train(module, data, self.epochs, 0, self.report.tick)
                save_backbone(weights, module.backbone, module.mean, module.std, half=True, table=NAME)
            known = {"inputs": inputs, "sha256": sha256_of(weights), "seconds": trained.seconds}
            write_json(note, known)
        return weights, known["sha256"], known["seconds"]

    def run(self) -> tuple[list, dict[str, dict], float]:
        """Outcomes, the cost of each protocol, and seconds of pre-training; seeds outermost, so that a stop leaves whole pairs."""
        weights, sha256, seconds = self.pretrain()
        costs = {protocol: cost_of(protocol, self.images, self.recipe, weights) for protocol in PROTOCOLS}
        outcomes = []
        for seed in range(self.seeds):
            for labels in self.labels:
                for protocol in PROTOCOLS:
                    outcomes.append(self._measure(protocol, labels, seed, weights, sha256))
        return outcomes, costs, seconds

    def _measure(self, protocol: str, labels: int, seed: int, weights: Path, sha256: str) -> Any:
        from lit_vision.study.cells import Ask, Outcome, digest

        recipe, ask = self.recipe, Ask(START, protocol, labels, seed)
        own = (
            "frozen"
            if PROTOCOLS[protocol] is None
            else (self.steps, recipe.options(START, protocol), recipe.train_views)
        )
        inputs = digest(self.base, sha256, own)
        if (outcome := self.store.get(ask, inputs)) is None:
            if not hasattr(self, "_frozen"):
                self._frozen = frozen_features(weights, self.images, recipe.side(START))
            begin = time.perf_counter()
            if PROTOCOLS[protocol] is None:
                (answer, chosen), steps = probe("linear", *self._frozen, self.images, ask), 0
            else:
                (answer, steps), chosen = self._train(ask, weights), "fixed recipe"
            top1 = float((answer.argmax(1) == self.images.test_labels).mean())
            outcome = Outcome(ask, top1, round(time.perf_counter() - begin, 3), steps, chosen, None)
            self.store.put(outcome, inputs, answer)
        self.report.say(
            f"seed {seed}, {labels:>5} labels, {protocol:<14} {100 * outcome.top1:5.1f} %  {outcome.seconds:5.1f} s"
        )
        return outcome

    def _train(self, ask: Any, weights: Path) -> tuple[np.ndarray, int]:
        from lit_vision.evaluation.linear import logistic_regression
        from lit_vision.study.training import classification, probabilities, quiet, save_classifier, train

        images, rows = self.images, self.images.subset(ask.labels, ask.seed)
        with quiet(self.folder / "table.log"):
            known = self._frozen[0][rows], images.labels[rows], self._frozen[1], len(images.classes)
            head = logistic_regression(*known, seed=ask.seed)
            module, data = classification(
                START, images, rows, self.recipe, ask.seed, weights, head, protocol=ask.protocol
            )
            self.report.begin(ask.name, data.batch_size)
            trained = train(module, data, -(-self.steps // data.batches_per_epoch), ask.seed, self.report.tick)
            answer = probabilities(module, images, self.recipe.side(START))
        if (ask.seed, ask.labels) in KEPT:
            save_classifier(self.store.folder / f"{ask.name}.safetensors", module)
        return answer, trained.steps


def results_file() -> Path:
    """The committed results file."""
    return RESULTS / f"{NAME}-desk.json"


def make(images=None, folder: Path | None = None, **smaller: Any) -> None:
    """Make the data, run, and put results and small weights where the table reads them."""
    from lit_vision.evaluation.results import write_result
    from lit_vision.study.cells import to_cells
    from lit_vision.study.progress import Reporter

    images = images or read()
    folder = folder or ROOT / "runs" / f"table-{NAME}"
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    with Reporter() as report:
        runner = Runner(images, folder, report, **smaller)
        outcomes, costs, seconds = runner.run()
    took = seconds + sum(outcome.seconds for outcome in outcomes)
    facts = {"data_fingerprint": images.fingerprint, "test_images": len(images.test), "pool_images": len(images.pool)}
    facts |= {"epochs": runner.epochs, "steps": runner.steps, "costs": costs}
    cells = to_cells(outcomes, {START: seconds})
    write_result(results_file(), recipe=f"table-{NAME}", seconds=round(took, 1), cells=cells, **facts)
    target = WEIGHTS / NAME
    target.mkdir(parents=True, exist_ok=True)
    for path in (*folder.glob("weights/*.safetensors"), *folder.glob("cells/*.safetensors")):
        shutil.copy(path, target / path.name)


def read() -> Any:
    """The turned garments, made if they are not there."""
    from lit_vision.cli import main
    from lit_vision.study.images import read_images

    if code := main(["data", "fashion", "--turned", "--out", DATA]):
        sys.exit(code)
    return read_images(ROOT / DATA)


def show() -> None:
    """Print the table and what it says; write it as Markdown, CSV and PNG."""
    from lit_vision.evaluation.results import read_result
    from lit_vision.tables import NOT_RUN, Table, rows_from, score, to_csv, to_markdown, to_png

    file = results_file()
    rows = rows_from([file]) if file.exists() else []
    result = read_result(file) if file.exists() else {"costs": {}}
    cells = {(row["protocol"], row["labels"]): row for row in rows}
    counts = sorted({row["labels"] for row in rows})
    columns = [
        "what trains",
        "parameters trained",
        "memory of a step",
        *(f"{n} labels" for n in counts),
        "seconds each",
    ]
    lines = []
    for protocol in PROTOCOLS:
        if (cost := result["costs"].get(protocol)) is None:
            lines.append([protocol, NOT_RUN, *[""] * (len(columns) - 2)])
            continue
        own = [cells.get((protocol, n)) for n in counts]
        each = sum(row["seconds"] for row in own if row) / max(1, sum(len(row["values"]) for row in own if row))
        lines.append(
            [
                protocol,
                f"{cost['parameters']:,} ({100 * cost['share']:.1f} %)",
                f"{cost['bytes'] / 1e6:.1f} MB",
                *(score(row) for row in own),
                f"{each:.1f}",
            ]
        )
    note = (
        "Test top-1, mean ± sd (seeds) on the turned garments; ViT of 0.16 M parameters, MAE without labels. linear: logistic regression on "
        "frozen features; all others go on from its head. Memory: weights, gradients, AdamW's moments and what the backward pass keeps, batch "
        "of at most 64."
    )
    table = Table(columns, lines, note)
    found = sentences({key: row["values"] for key, row in cells.items()}, counts)
    text = f"{to_markdown(table)}\n" + "".join(f"- {one}\n" for one in found)
    print(text)
    target = file.with_suffix("")
    RESULTS.mkdir(exist_ok=True)
    target.with_suffix(".md").write_text(text, encoding="utf-8")
    target.with_suffix(".csv").write_text(to_csv(table), encoding="utf-8")
    to_png(table, target.with_suffix(".png"), title="What trains of a pre-trained ViT")


def sentences(values: dict[tuple[str, int], list[float]], counts: list[int]) -> list[str]:
    """For each number of labels: which protocols differ from fine-tuning by more than two standard errors over paired seeds."""
    from lit_vision.evaluation.metrics import paired_difference

    said = []
    for n in counts:
        parts: dict[str, list[str]] = {"above": [], "below": [], "not told apart from": []}
        for protocol in PROTOCOLS:
            ours, full = values.get((protocol, n)), values.get(("finetune", n))
            if protocol == "finetune" or not ours or not full or len(ours) != len(full):
                continue
            gap = paired_difference(ours, full)
            spread = "" if gap.se is None else f" ± {100 * gap.se:.1f}"
            told = gap.se is not None and abs(gap.mean) > 2 * gap.se
            side = ("above" if gap.mean > 0 else "below") if told else "not told apart from"
            parts[side].append(f"{protocol} ({100 * gap.mean:+.1f}{spread})")
        text = "; ".join(f"{side} fine-tuning: {', '.join(found)}" for side, found in parts.items() if found)
        if text:
            said.append(
                f"{n} labels, points against fine-tuning everything over paired seeds. {text[0].upper()}{text[1:]}."
            )
    return said


def check(images=None) -> int:
    """Measure again what weights are committed for; 1 when a number moved, the data differ or nothing could be measured."""
    from lit_vision.evaluation.results import read_result
    from lit_vision.study.cells import Ask
    from lit_vision.study.training import classification, load_classifier, probabilities
    from lit_vision.study.verify import tolerance_of

    if not results_file().exists():
        print(f"{NAME}: not run yet")
        return 1
    images, result = images or read(), read_result(results_file())
    if images.fingerprint != result["data_fingerprint"]:
        print(f"{results_file().name}: made from other images (fingerprint differs); make the data again")
        return 1
    recipe, encoder = recipe_of(images.size), WEIGHTS / NAME / "mae-0.safetensors"
    frozen = frozen_features(encoder, images, recipe.side(START)) if encoder.exists() else None
    tally = Tally()
    for cell in result["cells"]:
        for seed, value in zip(cell["seeds"], cell["values"]):
            ask = Ask(START, cell["protocol"], cell["labels"], seed)
            path = WEIGHTS / NAME / f"{ask.name}.safetensors"
            if PROTOCOLS[ask.protocol] is None and frozen is not None:
                answer, _ = probe("linear", *frozen, images, ask)
            elif path.exists():
                rows = images.subset(ask.labels, seed)
                module, _ = classification(START, images, rows, recipe, seed, encoder, protocol=ask.protocol)
                load_classifier(path, module)
                answer = probabilities(module, images, recipe.side(START))
            else:
                continue
            top1 = float((answer.argmax(1) == images.test_labels).mean())
            tally.add(ask.name, value, top1, tolerance_of(ask.protocol))
    return tally.close(sum(len(cell["values"]) for cell in result["cells"]))


def dry() -> None:
    """Print what would be trained."""
    print(f"lit-vision data fashion --turned --out {DATA}")
    print(f"python experiments/table_{NAME}.py   # MAE {EPOCHS} epochs, then {SEEDS} seeds x {', '.join(LABELS)} of:")
    print("\n".join(f"  {name}: {options or 'as it is'}" for name, options in PROTOCOLS.items()))


def paper() -> None:
    """Print the commands."""
    print(
        "not run yet; on a cluster with ImageNet-1k in data/imagenet (train/ and val/ by class), for each labels and tune:"
    )
    recipe = "experiments/mae/vitb16_in1k_100ep_finetune.yaml"
    for tune in ("linear", "bias", "lora", "prompt-deep", "full"):
        print(f"lit-vision fit --config {recipe} --data.labels 0.01 --model.tune {tune}")


def main() -> int:
    """The script."""
    return run_table(str(__doc__), make, show, check, dry, paper)


if __name__ == "__main__":
    sys.exit(main())
