"""`lit-vision fewshot`: how good a model's features are with k labelled images per class: class prototypes and logistic regression."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_vision.cli.parser import CommandParser, add_model_arguments
from lit_vision.errors import UsageError, UserError
from lit_vision.io.atomic import atomic_write

ENDINGS = (".csv", ".md")


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision fewshot",
        description="Accuracy on ROOT's test split (else its validation split) with k labelled images per class of its training split, by\n"
        "nearest class prototype and by logistic regression on frozen features; the same images for both, several draws.",
        epilog="example: lit-vision fewshot data/fashion --model runs/mae/1 --shots 1,5,10 --out few.csv",
    )
    parser.add_argument("root", metavar="ROOT", help="a folder with train/ and test/ (or val/), by class")
    add_model_arguments(parser)
    parser.add_argument("--shots", default="1,5,10", metavar="LIST", help="labelled images per class (default 1,5,10)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="draws of these images (default 5)")
    parser.add_argument("--metric", choices=["cosine", "euclidean"], default="cosine", help="of the prototypes")
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="images at once (default 32)")
    parser.add_argument("--out", metavar="FILE", help="every draw as .csv, or the table as .md")
    parser.add_argument("--overwrite", action="store_true", help="replace what --out names")
    return parser


def main(argv: Sequence[str]) -> int:
    """One table on standard output; returns 0. Raises UserError with one line for every fault with a mend."""
    args = _parser().parse_args(list(argv))
    shots = _shots(args.shots)
    if args.seeds < 1 or args.batch_size < 1:
        raise UsageError(f"--seeds {args.seeds}, --batch_size {args.batch_size}: give at least 1")
    if args.out and not args.out.lower().endswith(ENDINGS):
        raise UsageError(f"--out {args.out}: end its name in {' or '.join(ENDINGS)}")
    from lit_vision.predict.inputs import check_output_path

    out = check_output_path(args.out) if args.out else None
    if out and out.exists() and not args.overwrite:
        raise UserError(f"--out {out}: exists already; name another file, or give --overwrite")
    from lit_vision.data.open_images import open_images

    folder = open_images(args.root)
    folder.require_classes("a few-shot measure")
    train = folder.require_split("train", "a few-shot measure")
    measured = next((name for name in ("test", "val") if name in folder.splits), None)
    if measured is None:
        raise UserError(f"{args.root}: has no test or val split to measure on; give one, by class")
    from lit_vision.data.splits import sample_per_class as choose
    from lit_vision.evaluation.few_shot import few_shot, summarize_episodes
    from lit_vision.predict.models import load_model

    model = load_model(args.model, args.device, args.base, args.trust)
    if "features" not in model.metadata.outputs:
        raise UserError(
            f"{model.path}: is for {model.metadata.task} and gives no features; give a classifier or a body"
        )
    drawn = sorted(
        {int(i) for seed in range(args.seeds) for k in shots for i in choose(train.labels, k, seed, folder.classes)}
    )
    learn = _features(model, folder, train, drawn, args.batch_size)
    test = folder.splits[measured]
    known = [i for i, label in enumerate(test.labels) if label >= 0]
    if not known:
        raise UserError(f"{args.root}/{measured}: no labelled image; give a folder per class")
    seen = _features(model, folder, test, known, args.batch_size).select(known)
    episodes = few_shot(learn, seen, shots, range(args.seeds), metric=args.metric)
    table = _table(
        summarize_episodes(episodes),
        shots,
        f"Top-1 on {len(known)} images of {measured}, mean ± sd ({args.seeds} draws).",
    )
    print(table, end="")
    if out:
        rows = "".join(f"{e.method},{e.shots},{e.seed},{e.value:.6f}\n" for e in episodes)
        text = f"method,shots,seed,top1\n{rows}" if out.suffix == ".csv" else table
        atomic_write(out, lambda file: file.write_text(text, encoding="utf-8"))
        print(out)
    return 0


def _shots(text: str) -> list[int]:
    try:
        found = sorted({int(word) for word in text.split(",")})
    except ValueError:
        raise UsageError(f"--shots {text}: give whole numbers with commas between, such as 1,5,10") from None
    if found[0] < 1:
        raise UsageError(f"--shots {text}: give at least 1 image per class")
    return found


def _features(model: Any, folder: Any, part: Any, rows: Sequence[int], batch_size: int) -> Any:
    """`Features` of a whole split with those of `rows` filled in; the others are NaN and are never drawn."""
    import numpy as np
    import torch

    from lit_vision.evaluation.features import Features
    from lit_vision.io.processes import cores
    from lit_vision.predict.inputs import Inputs, batches
    from lit_vision.predict.tasks import preprocess_for

    inputs = Inputs([part.paths[i] for i in rows], str(folder.root))
    values = None
    for batch in batches(inputs, preprocess_for(model.metadata), batch_size, workers=cores()):
        if batch.bad:
            raise UserError(f"{Path(folder.root) / batch.bad[0][0]}: {batch.bad[0][1]}")
        found = model(batch.pixels)["features"]
        if values is None:
            values = np.full((len(part.labels), found.shape[1]), np.nan, np.float32)
        values[rows[batch.first : batch.after]] = found
    labels = torch.as_tensor(np.asarray(part.labels))
    return Features(torch.from_numpy(values), labels, torch.zeros(len(labels), 3, dtype=torch.int64))


def _table(values: dict, shots: Sequence[int], note: str) -> str:
    from lit_vision.evaluation.metrics import format_percent
    from lit_vision.results.tables import Table, to_markdown

    methods = list(dict.fromkeys(method for method, _ in values))
    rows = [[method, *(format_percent(*values[method, k][:2]) for k in shots)] for method in methods]
    return to_markdown(Table(["method", *(f"{k} per class" for k in shots)], rows, note))
