"""Summarize errors about a recipe in one line that names the key."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Sequence

# keys of the command, not of the experiment: left out of config.yaml
COMMAND_KEYS = ("run_dir", "name", "resume", "resume_anyway", "classes_by_number", "wandb", "wandb_weights")


COMMANDS = ("fit", "validate", "test")


def summarize_parser_error(message: str, command: str = "fit") -> str:
    """Return jsonargparse's report of a wrong setting as one line: "<key>: <what is wrong>; <what to do>".

    Args:
        message: the report.
        command: name of the command whose help lists the flags; fit's for a name that is none of COMMANDS.
    """
    command = command if command in COMMANDS else "fit"
    key = (re.findall(r'Parser key "([^"]+)":', message) or [""])[0]
    reasons = re.findall(r"^\s*- (.+(?:\n\s{6,}.+)*)", message, re.MULTILINE)
    reasons = [" ".join(r.split()) for r in reasons if "<class 'NoneType'>" not in r]
    class_path = re.search(r"'class_path': '([^']+)'", message)
    if match := re.search(r"[Oo]ption '([^']+)' is not accepted", message):
        if flag := re.search(
            r"NestedArg\(key='([^']+)'", message
        ):  # --data.nope 1: the message does not name the class
            return f"{key}.{flag[1]}: no such key; lit-vision {command} --help_all lists them"
        if not class_path:
            return message  # from a nested parser, which does not know the class; the outer one calls this again
        option, path = match[1], class_path[1]
        hint = _nearest(option, _arguments(path))
        return f"{key}.init_args.{option}: {path.rsplit('.', 1)[-1]} takes no such argument; {hint}"
    if match := re.search(r"Subcommand '\w+' does not accept option '([^']+)'", message):
        return f"{match[1]}: no such key; {_nearest_key(match[1], command)}"
    if match := re.search(r"unrecognized arguments: (\S+)", message):
        return f"{match[1]}: no such flag; {_nearest_key(match[1].lstrip('-').split('=')[0], command)}"
    if match := re.search(r"following arguments are required: (?:\w+\.)?(\S+)", message):
        return f"{match[1]}: is missing; give class_path and init_args as the recipes in experiments/ do"
    if match := re.search(r"File does not exist: '([^']+)'", message):
        return f"{match[1]}: no such file"
    if match := re.search(r"argument (--\S+): expected one argument", message):
        return f"{match[1]}: one of its flags has no value; write the value after the flag"
    if "Problems parsing config" in message:
        return f"not a YAML file: {' '.join(message.split()).removeprefix('Problems parsing config: ')}"
    given = re.findall(r"Given value: (.+)", message) if not class_path else []
    text = reasons[-1] if reasons else " ".join(re.sub(r'^Parser key "[^"]+":', "", message).split())
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    if class_path and (inner := re.match(r"(\w+): (.+)", text)):  # a message about an argument of the class
        return f"{key}.init_args.{inner[1]}: {inner[2]}"
    if given and given[0].startswith("NestedArg("):  # --data.img_size big: the reason names the argument and the value
        return f"{key}.{text}"
    return f"{key}: {text}{', not ' + given[0] if given else ''}" if key else text


def _arguments(path: str) -> list[str]:
    """Return the names of a class's arguments; [] if its module is not imported."""
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return list(inspect.signature(found).parameters) if inspect.isclass(found) else []


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}" if known else "see its documentation"


def _nearest_key(key: str, command: str) -> str:
    head, _, last = key.rpartition(".")
    if head == "trainer":
        return _nearest(last, _arguments("lightning.pytorch.trainer.trainer.Trainer"))
    top = key.split(".")[0]
    near = difflib.get_close_matches(top, ["seed_everything", "trainer", "model", "data", *COMMAND_KEYS, "config"], n=1)
    return f"did you mean {near[0]}?" if near and near[0] != top else f"lit-vision {command} --help lists them"


def summarize_state_dict_error(error: RuntimeError) -> str:
    """Return the message of a failed `load_state_dict`, which lists every key, as one line."""
    text = str(error)
    kinds = {"Missing key": "missing", "Unexpected key": "not in the model", "size mismatch": "of another shape"}
    found = []
    for prefix, kind in kinds.items():
        if prefix == "size mismatch":
            keys = re.findall(r"size mismatch for (\S+):", text)
        else:
            keys = re.findall(r'"([^"]+)"', (re.findall(prefix + r"\(s\) in state_dict: (.+)", text) or [""])[0])
        if keys:
            found.append(f"{len(keys)} keys {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})")
    return f"does not fit the recipe's model: {'; '.join(found)}. Use the recipe that the checkpoint was made with"
