"""Write and read the results.json of a run or a study; both directions check it against one schema.

A run's result holds `metric` (name, value), a study's holds `cells`. Both hold what is needed to make the number again:
recipe, commit, seed, data fingerprint, weights. Files never hold an absolute path or a user's name.

Files of schema 1 (without the key `schema`) are read as well: `read_result` returns every file with the keys of schema
2.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_vision.errors import UserError
from lit_vision.evaluation.metrics import mean_sd
from lit_vision.io.atomic import write_json
from lit_vision.io.hashing import sha256_of_file
from lit_vision.results.environment import collect_environment, peak_memory_mb

SCHEMA = 2
RENAMED_KEYS = {"start": "init", "licence": "license"}  # schema 1, whose files have no key `schema`: schema 2
NO_FRACTIONS = ("loss", "cider")  # ends of the names of metrics with any value
_TEXT, _NUMBER, _COUNT = (str,), (int, float), (int,)
_NONE = (type(None),)
# key: the types that JSON may hold there. Missing keys are an error, so that "unknown" is always written down as null.
COMMON = {
    "schema": _COUNT,
    "recipe": _TEXT,  # name or relative path
    "recipe_sha256": _TEXT + _NONE,
    "commit": _TEXT + _NONE,
    "dirty": (bool, type(None)),
    "seed": _COUNT + _NONE,
    "data_fingerprint": _TEXT + _NONE,
    "weights_sha256": _TEXT + _NONE,
    "seconds": _NUMBER,
    "peak_memory_mb": _NUMBER,
    "device": _TEXT,
    "versions": (dict,),
}
RUN = {"metric": (dict,), "samples": _COUNT, "images_seen": _COUNT + _NONE}
CELL = {
    "init": _TEXT,
    "protocol": _TEXT,
    "labels": _COUNT,
    "values": (list,),
    "mean": _NUMBER + _NONE,
    "std": _NUMBER + _NONE,
    "seconds": _NUMBER,
    "pretrain_seconds": _NUMBER,
    "chosen_on": _TEXT,
}


class ResultError(UserError):
    """Raised for a results file that cannot be read or does not fit the schema; names the file and the key."""


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation `sd` (None for a single value) and number `n` of the values of one cell."""

    mean: float
    sd: float | None
    n: int


def summarize(values: Iterable[float]) -> Summary | None:
    """Return mean, sample standard deviation (n - 1; None for one value) and count; None without values."""
    values = list(values)
    return Summary(*mean_sd(values), len(values)) if values else None


def make_cell(init: str, protocol: str, labels: int, values: Iterable[float], **rest: Any) -> dict[str, Any]:
    """Return one cell of a study, with mean and std computed from its values.

    Args:
        init: pixels, scratch-cnn, scratch-<backbone>, mae, simclr or timm:<name>.
        protocol: logreg, knn, linear, finetune, lora, ...
        labels: number of labeled images used in all, including those that chose a hyper-parameter.
        values: one number per seed, fractions 0 to 1; may be empty (then mean and std are None: not run yet).
        rest: seconds, pretrain_seconds, chosen_on, and any other key.
    """
    values = [float(value) for value in values]
    summary = summarize(values)
    cell = {"init": init, "protocol": protocol, "labels": int(labels), "values": values}
    cell |= {"mean": summary and summary.mean, "std": summary and summary.sd}
    return cell | {"seconds": 0.0, "pretrain_seconds": 0.0, "chosen_on": "fixed recipe"} | rest


def _check_keys(holder: Mapping[str, Any], expected: Mapping[str, tuple[type, ...]], where: str) -> None:
    for key, types in expected.items():
        if key not in holder:
            raise ResultError(f"{where}: key '{key}' is missing; an unknown value is written as null")
        value = holder[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            names = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise ResultError(f"{where}: '{key}' is {value!r}; expected {names}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ResultError(f"{where}: '{key}' is {value}; a result must be finite")


def _check_fraction(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, _NUMBER) or not math.isfinite(value) or not 0 <= value <= 1:
        raise ResultError(f"{where} is {value!r}; expected a fraction from 0 to 1 (write 0.915, not 91.5)")


def _check_no_paths(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_no_paths(inner, f"{where}: '{key}'")
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_no_paths(inner, where)
    elif isinstance(value, str) and (value.startswith(("/", "~/", "\\\\")) or value[1:3] in (":\\", ":/")):
        raise ResultError(f"{where} is the absolute path {value!r}; write it relative, results are published")


def validate_result(result: Mapping[str, Any], where: str = "result") -> None:
    """Check one result against the schema.

    Args:
        result: the dict; with `cells` it is a study's, else a run's.
        where: named in errors, usually the file.

    Raises:
        ResultError: a key is missing, of the wrong type, not finite, not a fraction, an absolute path, or a cell's
            mean or std is not that of its values.
    """
    if not isinstance(result, Mapping):
        raise ResultError(f"{where}: holds a {type(result).__name__}; expected one JSON object")
    _check_keys(result, COMMON, where)
    _check_no_paths(result, where)
    if "cells" not in result:
        _check_keys(result, RUN, where)
        name = result["metric"].get("name")
        if not isinstance(name, str) or "value" not in result["metric"]:
            raise ResultError(f"{where}: 'metric' is {result['metric']!r}; expected {{name: text, value: fraction}}")
        value = result["metric"]["value"]
        if name.endswith(NO_FRACTIONS):  # a run without labels has only a loss
            _check_keys({name: value}, {name: _NUMBER}, where)
        else:
            _check_fraction(value, f"{where}: metric '{name}'")
        return
    if not isinstance(result["cells"], list):
        raise ResultError(f"{where}: 'cells' is a {type(result['cells']).__name__}; expected a list")
    for number, cell in enumerate(result["cells"]):
        at = f"{where}: cell {number}"
        if not isinstance(cell, Mapping):
            raise ResultError(f"{at} is {cell!r}; expected an object")
        _check_cell(cell, at)


def _check_cell(cell: Mapping[str, Any], where: str) -> None:
    _check_keys(cell, CELL, where)
    for value in cell["values"]:
        _check_fraction(value, f"{where}: a value")
    summary = summarize(cell["values"])
    for key, expected in (("mean", summary.mean if summary else None), ("std", summary.sd if summary else None)):
        stored = cell[key]
        equal = stored == expected
        if stored is not None and expected is not None:
            equal = math.isclose(stored, expected, abs_tol=1e-9)
        if not equal:
            raise ResultError(f"{where}: '{key}' is {stored}, but its values give {expected}; do not edit it by hand")


def write_result(path: str | os.PathLike[str], *, recipe: str, seed: int | None = None, **fields: Any) -> Path:
    """Add schema, commit and environment to a result, check it, and write it atomically.

    Filled in unless given: commit, dirty, device, versions, cores, system, peak_memory_mb; and null for recipe_sha256,
    data_fingerprint, weights_sha256 and (for a run) images_seen.

    Args:
        path: the file, usually <run folder>/results.json; its folder is made.
        recipe: name or relative path of the recipe; if it is an existing file its sha256 is added.
        seed: the run's seed; None for a study, whose cells hold several.
        fields: for a run metric={name, value}, samples, seconds, images_seen; for a study cells=[make_cell(...)],
            seconds; data_fingerprint, weights_sha256, and any other key.

    Returns:
        The path written.

    Raises:
        ResultError: the result does not fit the schema; nothing is written.
    """
    unknown: dict[str, Any] = dict.fromkeys(("recipe_sha256", "data_fingerprint", "weights_sha256"))
    if "cells" not in fields:
        unknown["images_seen"] = None
    result = {"schema": SCHEMA, "recipe": str(recipe)} | unknown
    result |= collect_environment(seed) | {"peak_memory_mb": peak_memory_mb()} | fields
    if result["recipe_sha256"] is None and Path(recipe).is_file():
        result["recipe_sha256"] = sha256_of_file(recipe)
    validate_result(result, Path(path).name)
    return write_json(path, result)


def to_current_schema(result: Any, where: str) -> Any:
    """Return a stored result with the keys of schema 2; anything but a JSON object is returned as it is.

    Raises:
        ResultError: the result is of a schema that this version does not know.
    """
    if not isinstance(result, Mapping) or result.get("schema") == SCHEMA:
        return result
    if "schema" in result:
        raise ResultError(f"{where}: 'schema' is {result['schema']!r}, this version reads {SCHEMA}; use a newer one")

    def renamed(holder: Mapping[str, Any]) -> dict[str, Any]:
        return {RENAMED_KEYS.get(key, key): value for key, value in holder.items()}

    current = {"schema": SCHEMA} | renamed(result)
    if isinstance(result.get("cells"), list):
        current["cells"] = [renamed(cell) if isinstance(cell, Mapping) else cell for cell in result["cells"]]
    return current


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read one results file of schema 1 or 2, check it, and return it with the keys of schema 2.

    Raises:
        ResultError: missing, not JSON, or not a valid result; the message names the file.
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(f"{path}: no such results file; run its recipe first") from None
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be read as JSON ({error}); run its recipe again") from None
    result = to_current_schema(result, str(path))
    validate_result(result, str(path))
    return dict(result)


def read_results(location: str | os.PathLike[str]) -> list[tuple[Path, dict[str, Any]]]:
    """Read one results file, or the *.json of a folder and the results*.json below it.

    Args:
        location: a results file, a folder of them (experiments/results), or a folder of runs.

    Returns:
        [(path, result)] sorted by path; empty if there is nothing yet (a table then says "not run yet").

    Raises:
        ResultError: a file is not a valid result; such a file is never skipped.
    """
    location = Path(location)
    if location.is_file():
        return [(location, read_result(location))]
    if not location.is_dir():
        return []
    # a run's folder holds other JSON files as well
    direct = [] if (location / "results.json").exists() else location.glob("*.json")
    paths = sorted({*direct, *location.rglob("results*.json")})
    return [(path, read_result(path)) for path in paths]
