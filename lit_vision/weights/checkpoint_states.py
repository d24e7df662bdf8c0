"""Choose one of the states of a checkpoint, and strip the prefixes that other people's modules give a network's keys.

A state is a dictionary of named tensors. A training script's file may hold several: the last weights, their moving
average, a teacher. Each has a name: its keys in the file joined by dots ("state_dict_ema", "ema.module"), or the module
at the top of a state's own keys ("teacher" for `teacher.conv1.weight`).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_vision.errors import UserError

USUAL = ("state_dict", "model", "model_state_dict")  # in this order, one of them is taken where --state names none
_ALSO = ("net", "network", "weights", "params", "model_state", "net_state_dict", "module", "backbone", "encoder")
_NO_WEIGHTS = ("optimizer", "optim", "scheduler", "scaler", "callback", "loops", "hyper_parameters", "args", "config")
_DEPTH = 3  # of dictionaries in which a state is looked for

# names under which other people's modules hold a network, each stripped as often as it comes
PREFIXES = ("module.", "model.", "net.", "backbone.", "encoder.")


def choose_state(content: object, wanted: str | None, path: Path) -> tuple[str, dict[Any, Any], list[str]]:
    """Return the name of a state, the state, and the names of the others.

    Args:
        content: of the file.
        wanted: name of the state; None takes the usual one, or the only one.
        path: the file, for messages.

    Returns:
        Name ("" if the file itself is the state), the state ({} if there is none), the others' names.

    Raises:
        UserError: no state of this name, or several and none of a usual name.
    """
    if not isinstance(content, dict):
        return "", {}, []
    states = dict(_find_states(content))
    if wanted is not None:
        modules = _modules(states, content)
        if (found := states.get(wanted) or modules.get(wanted)) is None:
            names = ", ".join([*(name for name in states if name), *modules]) or "none"
            raise UserError(f"{path}: has no state {wanted!r} (--state); it has {names}")
        return wanted, found, [name for name in states if name not in (wanted, "")]
    usual = next((name for name in USUAL if isinstance(content.get(name), dict)), None)
    candidates = [name for name in states if usual is not None and f"{name}.".startswith(f"{usual}.")]
    if usual is not None and not candidates:
        return usual, content[usual], list(states)
    candidates = candidates or [name for name in (*_ALSO, "") if name in states][:1] or list(states)
    if len(candidates) > 1:
        raise UserError(f"{path}: has the states {', '.join(candidates)}; choose one: lit-vision import --state NAME")
    if not candidates:
        return "", content, []
    name = candidates[0]
    return name, states[name], [other for other in states if other not in (name, "")]


def _find_states(content: Mapping[Any, Any], name: str = "", depth: int = 0) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Yield name and content of each dictionary that holds named weights: tensors, one at least of two axes."""
    if any(isinstance(key, str) and isinstance(value, Tensor) and value.ndim > 1 for key, value in content.items()):
        yield name, dict(content)
        if name:
            return
    for key, value in content.items() if depth < _DEPTH else ():
        if isinstance(key, str) and isinstance(value, dict) and not any(word in key.lower() for word in _NO_WEIGHTS):
            yield from _find_states(value, f"{name}.{key}" if name else key, depth + 1)


def _modules(states: Mapping[str, dict[Any, Any]], content: Mapping[Any, Any]) -> dict[str, dict[Any, Any]]:
    """Return the modules at the top of the usual state, by their names, without that name in the keys."""
    usual = next((states[name] for name in (*USUAL, "", *_ALSO) if name in states), content)
    keys = strip_key_wrappers({key: value for key, value in usual.items() if isinstance(key, str)})
    out: dict[str, dict[Any, Any]] = {}
    for key, value in keys.items():
        module, dot, rest = key.partition(".")
        if dot and isinstance(value, Tensor):
            out.setdefault(module, {})[rest] = value
    return out


def strip_key_wrappers(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state without `module.` (DistributedDataParallel) and `_orig_mod.` (torch.compile) in its keys."""
    out = {}
    for key, value in state.items():
        name = key.replace("_orig_mod.", "")
        while name.startswith("module."):
            name = name.removeprefix("module.")
        out[name] = value
    return out


def strip_prefix(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
    """Return the tensors of the module of one of PREFIXES, without the prefix, and those outside that module.

    None if no such module holds most of the tensors: a head, a loss or a metric may stand beside the network, but which
    of two networks is meant cannot be known.
    """
    for prefix in PREFIXES:
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if 2 * len(inside) > len(state):
            return inside, {key: value for key, value in state.items() if not key.startswith(prefix)}
    return None
