"""The `lit-vision` command: dispatch to a table of commands, each imported only when it is called.

Nothing heavy is imported here, so that `--help` is fast (importing lightning alone takes seconds).
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence

from lit_vision import __version__
from lit_vision.cli.run_reported import run_reported
from lit_vision.io.malloc import keep_freed_memory

# name: (module, function that takes the arguments after the name, one line of help)
COMMANDS = {
    "fit": ("lit_vision.cli.fit", "main_fit", "train: lit-vision fit --config RECIPE.yaml [--resume auto]"),
    "validate": ("lit_vision.cli.fit", "main_validate", "measure a checkpoint on the validation split"),
    "test": ("lit_vision.cli.fit", "main_test", "measure a checkpoint on the test split"),
    "study": (
        "lit_vision.cli.study",
        "main",
        "compare baselines, pre-training and few labels on a folder of images, in one report",
    ),
    "plan": (
        "lit_vision.cli.plan",
        "main",
        "what a recipe will cost: steps, multiply-adds, memory: lit-vision plan RECIPE.yaml --nodes 8",
    ),
    "sweep": (
        "lit_vision.cli.sweep",
        "main",
        "search settings of a recipe: lit-vision sweep --config RECIPE.yaml --space SPACE.yaml --trials 20",
    ),
    "choose": (
        "lit_vision.cli.choose",
        "main",
        "choose which images to label next: lit-vision choose ROOT --num 100",
    ),
    "predict": (
        "lit_vision.cli.predict",
        "main",
        "run a model on images: lit-vision predict --model RUN_OR_FILE IMAGES --out FILE.csv",
    ),
    "stylize": (
        "lit_vision.cli.stylize",
        "main",
        "the content of an image in the style of another: lit-vision stylize CONTENT --style STYLE --out FILE.png",
    ),
    "generate": (
        "lit_vision.cli.generate",
        "main",
        "make images with a generator: lit-vision generate --model RUN --num 64 --out DIR",
    ),
    "restore": (
        "lit_vision.cli.restore",
        "main",
        "denoise, enlarge or fill images of any size: lit-vision restore --model RUN IMAGES --out DIR",
    ),
    "serve": (
        "lit_vision.cli.serve",
        "main",
        "try a model on a page in the browser, with an API behind it: lit-vision serve RUN_OR_FILE",
    ),
    "label": (
        "lit_vision.cli.label",
        "main",
        "label a folder of images on a page in the browser: lit-vision label ROOT",
    ),
    "import": (
        "lit_vision.cli.import_weights",
        "main",
        "convert weights of timm, torchvision, transformers, lightly or facebookresearch/mae",
    ),
    "export": (
        "lit_vision.cli.export",
        "main",
        "write a run as safetensors, ONNX, OpenVINO, pt2, adapter, int8, or for timm and the Hub",
    ),
    "prune": (
        "lit_vision.cli.prune",
        "main",
        "write a smaller model with a share of the channels: lit-vision prune MODEL --keep 0.5 --out FILE.safetensors",
    ),
    "protect": (
        "lit_vision.cli.protect",
        "main",
        "seal, sign and verify a model's file, make keys, read a watermark",
    ),
    "embed": (
        "lit_vision.cli.embed",
        "main",
        "write features of images to an index: lit-vision embed --model M IMAGES --out FILE",
    ),
    "search": (
        "lit_vision.cli.search",
        "main",
        "find similar images or near duplicates: lit-vision search --index FILE --query IMAGE",
    ),
    "fewshot": (
        "lit_vision.cli.few_shot",
        "main",
        "measure features with k labeled images per class, by prototypes and logistic regression",
    ),
    "data": ("lit_vision.cli.make_data", "main", "make a data set: lit-vision data fashion --out DIR"),
    "doctor": (
        "lit_vision.cli.doctor",
        "main",
        "check a folder of images: broken files, duplicates, imbalance, loader speed",
    ),
    "pack": (
        "lit_vision.cli.pack",
        "main",
        "store a folder as shards, large tar files: lit-vision pack ROOT --out DIR",
    ),
}

# Frozen features of photographs in a study: 20 instead of 36 ms of CPU an image (EfficientNet-Lite0, 224 pixels).
# fit gains too little by it for the memory that it takes (make benchmark, section memory).
KEEP_FREED_MEMORY = ("predict", "embed", "study", "choose")


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, (*_, text) in COMMANDS.items())
    return (
        "usage: lit-vision COMMAND [options]\n\n"
        f"commands:\n{lines}\n\n"
        "lit-vision COMMAND --help lists its options.\n"
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM."
    )


def _expand_home(argument: str) -> str:
    """Return an argument with `~/` at its beginning, or after `--flag=`, as the home folder.

    A shell does the first unless it is quoted, and many do not do the second.
    """
    head, sign, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return head + sign + (os.path.expanduser(value) if value.startswith("~/") else value)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after `lit-vision`; those of the process if None.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 after Ctrl-C (143 after SIGTERM leaves as SystemExit).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that is not UTF-8 is printed escaped, as stderr has it
        sys.stdout.reconfigure(errors="backslashreplace")
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"lit-vision {__version__}")
        return 0
    name, rest = argv[0], [_expand_home(argument) for argument in argv[1:]]
    if name not in COMMANDS:
        print(f"lit-vision: error: no command {name!r}; commands: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks a server at import otherwise
    return run_reported(name, lambda: _run(name, rest))


def _run(name: str, arguments: Sequence[str]) -> int | None:
    keep_freed_memory(by_default=name in KEEP_FREED_MEMORY)
    module, function, _ = COMMANDS[name]
    code: int | None = getattr(importlib.import_module(module), function)(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
