"""The fewshot command: accuracy with k labeled images per class, on frozen features and by the classes' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_vision.cli.parser import (
    CommandParser,
    add_batch_arguments,
    add_model_arguments,
    check_batch_arguments,
    opened_models,
)
from lit_vision.errors import UsageError, UserError
from lit_vision.io.atomic import atomic_write

if TYPE_CHECKING:
    from lit_vision.data.folder import Folder, Split
    from lit_vision.evaluation.features import Features
    from lit_vision.evaluation.few_shot import Classifier
    from lit_vision.predict.runtimes import Model

SUFFIXES = (".csv", ".md")
TEXT_METHODS = ("zero-shot", "coop")  # of predict/zero_shot.py, in the table's order; the others in few_shot.py
ALL_METHODS = (*TEXT_METHODS, "prototypes", "logreg")


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision fewshot",
        description="Accuracy on ROOT's test split (else its validation split) with k labeled images per class of its "
        "training split, by\nnearest class prototype and by logistic regression on frozen features; both use the same "
        "images, in several draws.\nA model of images and captions is also measured with the names of the classes "
        "alone (zero-shot), and with prompts\nthat are learned from these images (coop).",
        epilog="example: lit-vision fewshot data/fashion --model runs/mae/1 --shots 1,5,10 --out few.csv",
    )
    parser.add_argument(
        "root",
        metavar="ROOT",
        help="a folder with train/ and test/ (or val/), by class, or shards; the run's split names and quarantine list "
        "apply",
    )
    add_model_arguments(parser)
    parser.add_argument("--shots", default="1,5,10", metavar="LIST", help="labeled images per class (default 1,5,10)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="draws of these images (default 5)")
    parser.add_argument(
        "--methods", metavar="LIST", help=f"some of {','.join(ALL_METHODS)} (default: all that the model allows)"
    )
    parser.add_argument("--metric", choices=["cosine", "euclidean"], default="cosine", help="of the prototypes")
    parser.add_argument("--out", metavar="FILE", help="every draw as .csv, or the table as .md")
    add_batch_arguments(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision fewshot ROOT --model RUN_OR_FILE`, print a table; returns 0.

    Raises:
        UserError: one line that names the file or flag and what to do.
    """
    args = _parser().parse_args(list(argv))
    check_batch_arguments(args)
    shots, methods = _parse_shots(args.shots), _parse_methods(args.methods)
    if args.seeds < 1:
        raise UsageError(f"--seeds {args.seeds}: give at least 1")
    if args.out and not args.out.lower().endswith(SUFFIXES):
        raise UsageError(f"--out {args.out}: end its name in {' or '.join(SUFFIXES)}")
    from lit_vision.predict.writers import check_output_path

    out = check_output_path(args.out, args.overwrite) if args.out else None
    from lit_vision.data.open_as_trained import open_as_trained
    from lit_vision.predict.models import find_model, load_model
    from lit_vision.runs.run_dir import data_settings, run_dir_of

    settings = data_settings(run_dir_of(find_model(args.model)))
    folder, train_name, names = open_as_trained(args.root, settings)
    print(*folder.lines(), sep="\n", flush=True)
    folder.require_classes("a few-shot measure")
    train = folder.require_split(train_name, "a few-shot measure")
    measured = next(iter(names), None)
    if measured is None:
        raise UserError(f"{args.root}: has no test or val split to measure on; add one, by class")
    from lit_vision.data.splits import sample_per_class
    from lit_vision.evaluation.few_shot import few_shot, summarize_episodes
    from lit_vision.predict.inference import check_has_features

    with opened_models(args):
        model = load_model(args.model, args.device, args.base, args.trust_pt2, value_range=args.range)
        check_has_features(model)
        others, note = _text_methods(model, args.model, folder.classes, methods)
    sampled = {
        int(i)
        for seed in range(args.seeds)
        for k in shots
        for i in sample_per_class(train.labels, k, seed, folder.classes)
    }
    train_features = _features(model, folder, train, sorted(sampled), args.batch_size, args.workers)
    test = folder.splits[measured]
    labeled = [i for i, label in enumerate(test.labels) if label >= 0]
    if not labeled:
        raise UserError(f"{args.root}/{measured}: has no labeled image; add a folder per class")
    test_features = _features(model, folder, test, labeled, args.batch_size, args.workers).select(labeled)
    frozen = [name for name in methods or ALL_METHODS if name not in TEXT_METHODS]
    episodes = few_shot(train_features, test_features, shots, range(args.seeds), frozen, args.metric, others)
    table = _table(
        summarize_episodes(episodes),
        shots,
        f"Top-1 on {len(labeled)} images of {measured}, mean ± sd ({args.seeds} draws).{note}",
    )
    print(table, end="")
    if out:
        rows = "".join(f"{e.method},{e.shots},{e.seed},{e.value:.6f}\n" for e in episodes)
        text = f"method,shots,seed,top1\n{rows}" if out.suffix == ".csv" else table
        atomic_write(out, lambda file: file.write_text(text, encoding="utf-8", errors="surrogateescape"))
        print(out)
    return 0


def _parse_shots(text: str) -> list[int]:
    try:
        shots = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"--shots {text}: give whole numbers separated by commas, such as 1,5,10") from None
    if shots[0] < 1:
        raise UsageError(f"--shots {text}: give at least 1 image per class")
    return shots


def _parse_methods(text: str | None) -> list[str]:
    """Return the methods of a list in the table's order; empty for None."""
    if text is None:
        return []
    named = {part.strip() for part in text.split(",")}
    if unknown := sorted(named - set(ALL_METHODS)):
        raise UsageError(f"--methods {text}: {unknown[0]!r} is not one of {', '.join(ALL_METHODS)}")
    return [name for name in ALL_METHODS if name in named]


def _text_methods(
    model: Model, source: str, classes: Sequence[str], methods: Sequence[str]
) -> tuple[dict[str, Classifier], str]:
    """Return the classifiers of TEXT_METHODS by name, none if the model has no text tower, and a note for the table.

    Args:
        methods: those that the user named; if none, a reason why these cannot work is printed, not raised.
    """
    named = [name for name in TEXT_METHODS if name in methods]
    if methods and not named:
        return {}, ""
    from lit_vision.predict.zero_shot import text_classifiers, text_network

    network = text_network(source, model.device) if model.metadata.task == "features" else None
    if network is None:
        if named:
            raise UserError(f"--methods {named[0]}: {source} has no text tower; give a run of ImageText")
        return {}, ""
    try:
        contexts, found = text_classifiers(network, classes)
    except UserError as error:
        if named:
            raise
        print(f"without {' and '.join(TEXT_METHODS)}: {error}", flush=True)
        return {}, ""
    found = {name: found[name] for name in named or TEXT_METHODS}
    if "coop" not in found:
        return found, ""
    print("coop trains prompts in every draw, which takes a while on a CPU; --methods leaves it out", flush=True)
    return found, f" coop: {contexts} context vectors shared by the classes."


def _features(
    model: Model, folder: Folder, split: Split, rows: Sequence[int], batch_size: int, workers: int
) -> Features:
    """Return `Features` of a complete split with `rows` filled in; the other rows are NaN and are never sampled."""
    import numpy as np
    import torch

    from lit_vision.evaluation.features import Features
    from lit_vision.io.processes import cores
    from lit_vision.predict.inputs import Inputs, batches
    from lit_vision.predict.tasks import preprocess_for

    inputs = Inputs.of(folder, [split.paths[i] for i in rows])
    values: np.ndarray | None = None
    prepare, pixel_format = preprocess_for(model.metadata), model.metadata.pixel_format
    for batch in batches(inputs, prepare, batch_size, workers=workers or cores(), pixel_format=pixel_format):
        if batch.unreadable or batch.pixels is None:
            name, reason = batch.unreadable[0]
            raise UserError(f"{Path(folder.root) / name}: {reason}")
        features = model(batch.pixels)["features"]
        if values is None:
            values = np.full((len(split.labels), features.shape[1]), np.nan, np.float32)
        values[rows[batch.start : batch.stop]] = features
    labels = torch.as_tensor(np.asarray(split.labels))
    return Features(torch.from_numpy(values), labels, torch.zeros(len(labels), 3, dtype=torch.int64))


def _table(values: Mapping[tuple[str, int], tuple[float, float | None, int]], shots: Sequence[int], note: str) -> str:
    from lit_vision.evaluation.metrics import format_percent
    from lit_vision.results.tables import Table, to_markdown

    methods = list(dict.fromkeys(method for method, _ in values))
    rows = [[method, *(format_percent(*values[method, k][:2]) for k in shots)] for method in methods]
    return to_markdown(Table(["method", *(f"{k} per class" for k in shots)], rows, note))
