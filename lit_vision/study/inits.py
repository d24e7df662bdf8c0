"""Inits of a study, from the list of `--inits`: what the weights of a network begin as, and their names in tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_vision.errors import UsageError
from lit_vision.study.presets import (
    PRETRAINED,
    PUBLIC,
    PUBLIC_GPU,
    PUBLIC_PHOTOGRAPHS,
    SCRATCH,
    SMALL,
    TIMM,
    base_of,
    is_plain_vit_name,
    method_of,
)

BASELINES = ("pixels", *SCRATCH)  # of every study; they may be named, which changes nothing
PUBLIC_BASE = "public"  # in METHOD@public: the weights of --pretrained
AUTO_PUBLIC = f"{TIMM}auto"  # stands for the public weights of --pretrained auto until the images' size is known
LONGEST_NAME = 32  # characters of a file's name in tables
KINDS = f"{', '.join(PRETRAINED)}, {TIMM}NAME, a file of weights, a run's folder or METHOD@INIT"


@dataclass(frozen=True)
class Init:
    """One init of a study.

    Attributes:
        name: in tables, files and results: printable, without spaces, and unique in the study.
        method: that the study pre-trains it with, "mae", "simclr" or "lejepa"; "" for weights that are taken as they
            are.
        base: name of the init whose weights the method starts from; "" for random weights.
        path: the file or run's folder that was given; None for others.
        sha256: of that file, hex; "" before it is opened.
        license: of the weights; "" if not stated.
        non_commercial: True if the license forbids commercial use.
    """

    name: str
    method: str = ""
    base: str = ""
    path: Path | None = None
    sha256: str = ""
    license: str = ""
    non_commercial: bool = False

    @property
    def record(self) -> dict[str, Any]:
        """Plain values for results.json, with the file's name instead of its path."""
        return {
            "method": self.method,
            "base": self.base,
            "file": self.path.name if self.path else None,
            "sha256": self.sha256,
            "license": self.license,
            "non_commercial": self.non_commercial,
        }


def init_of(name: str) -> Init:
    """Return the init of a name that needs no path: a method's, timm:NAME or METHOD@timm:NAME."""
    return Init(name, method_of(name), base_of(name))


def parse_inits(items: str | Sequence[str], public: str = "") -> list[Init]:
    """Return the inits of a list, in its order, each once; what an init of METHOD@INIT starts from comes before it.

    Those that start from INIT need its weights, so INIT is tried too. Baselines are left out: every study has them.

    Args:
        items: of the command line, separated by commas; each is one of KINDS or a baseline.
        public: init of the public weights that METHOD@public stands for; "" if there are none.

    Raises:
        UsageError: an item is none of these, or no such path; METHOD@INIT with a method's name or a baseline as INIT,
            or MAE from a network that is no plain ViT.
    """
    inits: dict[str, Init] = {}
    paths: dict[Path, str] = {}  # name by path

    def add(item: str, text: str) -> str:
        """Add the init of an item and return its name; `text` is the item that the user has given."""
        if item in PRETRAINED:
            return _put(inits, Init(item, item))
        if item.startswith(TIMM) and item != TIMM:
            return _put(inits, Init(item))
        method, at, base = item.partition("@")
        if at and method in PRETRAINED and not Path(item).exists():
            if base == PUBLIC_BASE and not public:
                raise UsageError(
                    f"--inits: {text!r}, but --pretrained is off; name the weights, such as {TIMM}resnet18"
                )
            if base in (*PRETRAINED, *BASELINES) and not Path(base).exists():
                raise UsageError(f"--inits: {text!r}; after @ give {TIMM}NAME, a file of weights, or {PUBLIC_BASE}")
            if method == "mae" and base.startswith(TIMM) and not is_plain_vit_name(base.removeprefix(TIMM)):
                raise UsageError(f"--inits: {text!r}; MAE needs a plain ViT, give simclr@{base} or lejepa@{base}")
            start = add(public if base == PUBLIC_BASE else base, text)
            return _put(inits, Init(f"{method}@{start}", method, start))
        path = Path(item).expanduser()
        if not path.exists():
            raise UsageError(f"--inits: {text!r} is not one of {KINDS}{_hint(item)}; separate them by commas")
        key = path.resolve()
        if key not in paths:
            paths[key] = _free_name(_name_of(path), {*inits, *BASELINES, *PRETRAINED})
        return _put(inits, Init(paths[key], path=path))

    for item in _split(items):
        if item not in BASELINES:
            add(item, item)
    return list(inits.values())


def choose_public(typical_side: int, gpu: bool) -> str:
    """Return the init of the public weights that a study tries by default: Apache-2.0, larger ones with a GPU.

    Args:
        typical_side: median short side of the images, pixels.
        gpu: whether the machine has one.
    """
    return TIMM + (PUBLIC if typical_side <= SMALL else PUBLIC_GPU if gpu else PUBLIC_PHOTOGRAPHS)


def _put(inits: dict[str, Init], init: Init) -> str:
    inits.setdefault(init.name, init)
    return init.name


def _split(items: str | Sequence[str]) -> Iterator[str]:
    """Yield the items of one or more lists separated by commas; a path with a comma in it is one item."""
    for text in [items] if isinstance(items, str) else items:
        if Path(text).exists():
            yield text
        else:
            yield from filter(None, (item.strip() for item in text.split(",")))


def _name_of(path: Path) -> str:
    """Return a short name of printable characters: that of the run's folder or the stem of the file."""
    path = path.resolve()
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    name = run.name if run.is_dir() else run.stem
    name = re.sub(r"[^A-Za-z0-9._+-]+", "_", name)[:LONGEST_NAME].strip("._-") or "weights"
    # tables tell baselines by the beginning of their names, and --epochs numbers of labels from inits
    return f"weights-{name}" if name.startswith(("pixels", "scratch")) or name.isdecimal() else name


def _free_name(name: str, taken: set[str]) -> str:
    """Return the name, or NAME-2, NAME-3, ... if it is taken."""
    number = 1
    while (found := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return found


def _hint(item: str) -> str:
    """Return what was probably meant by an item that is no path: a name of timm without its prefix."""
    import timm

    known = "/" not in item and timm.is_model(item.split(".")[0])
    return f" (did you mean {TIMM}{item}?)" if known else " and no such path"
