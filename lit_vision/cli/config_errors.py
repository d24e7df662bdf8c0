"""What jsonargparse says about a wrong recipe, as one line that names the key."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Sequence

# keys of the command, not of the experiment: left out of config.yaml
COMMAND_KEYS = ("run_dir", "name", "resume", "resume_anyway", "wandb", "wandb_weights")


def summarize_parser_error(message: str) -> str:
    """jsonargparse's report of a wrong setting as "<key>: <what>; <the mend>"."""
    key = (re.findall(r'Parser key "([^"]+)":', message) or [""])[0]
    reasons = re.findall(r"^\s*- (.+(?:\n\s{6,}.+)*)", message, re.MULTILINE)
    reasons = [" ".join(r.split()) for r in reasons if "<class 'NoneType'>" not in r]
    of_class = re.search(r"'class_path': '([^']+)'", message)
    if match := re.search(r"[Oo]ption '([^']+)' is not accepted", message):
        if flag := re.search(r"NestedArg\(key='([^']+)'", message):  # --data.nope 1: the class is not said
            return f"{key}.{flag[1]}: no such key; lit-vision fit --help_all lists them"
        if not of_class:
            return message  # of a nested parser, which does not know the class; the outer one comes here again
        option, path = match[1], of_class[1]
        return f"{key}.init_args.{option}: {path.rsplit('.', 1)[-1]} takes no such argument; {_nearest(option, _arguments(path))}"
    if match := re.search(r"Subcommand '\w+' does not accept option '([^']+)'", message):
        return f"{match[1]}: no such key; {_nearest_key(match[1])}"
    if match := re.search(r"unrecognized arguments: (\S+)", message):
        return f"{match[1]}: no such flag; {_nearest_key(match[1].lstrip('-').split('=')[0])}"
    if match := re.search(r"following arguments are required: (?:\w+\.)?(\S+)", message):
        return f"{match[1]}: is missing; give class_path and init_args as the recipes in experiments/ do"
    if match := re.search(r"File does not exist: '([^']+)'", message):
        return f"{match[1]}: no such file"
    if match := re.search(r"argument (--\S+): expected one argument", message):
        return f"{match[1]}: a flag of it has no value; write one behind it"
    if "Problems parsing config" in message:
        return f"not a YAML file: {' '.join(message.split()).removeprefix('Problems parsing config: ')}"
    given = re.findall(r"Given value: (.+)", message) if not of_class else []
    text = reasons[-1] if reasons else " ".join(re.sub(r'^Parser key "[^"]+":', "", message).split())
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    if of_class and (inner := re.match(r"(\w+): (.+)", text)):  # an argument of the class: its own message came through
        return f"{key}.init_args.{inner[1]}: {inner[2]}"
    if given and given[0].startswith("NestedArg("):  # --data.img_size big: the reason names the argument and the value
        return f"{key}.{text}"
    return f"{key}: {text}{', not ' + given[0] if given else ''}" if key else text


def _arguments(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return list(inspect.signature(found).parameters) if inspect.isclass(found) else []


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}" if known else "see its documentation"


def _nearest_key(key: str) -> str:
    head, _, last = key.rpartition(".")
    if head == "trainer":
        return _nearest(last, _arguments("lightning.pytorch.trainer.trainer.Trainer"))
    top = key.split(".")[0]
    near = difflib.get_close_matches(top, ["seed_everything", "trainer", "model", "data", *COMMAND_KEYS, "config"], n=1)
    return f"did you mean {near[0]}?" if near and near[0] != top else "lit-vision fit --help lists them"


def summarize_state_dict_error(error: RuntimeError) -> str:
    """load_state_dict's page of keys as one line."""
    text = str(error)
    kinds = {"Missing key": "missing", "Unexpected key": "not in the model", "size mismatch": "of another shape"}
    found = []
    for start, word in kinds.items():
        if start == "size mismatch":
            keys = re.findall(r"size mismatch for (\S+):", text)
        else:
            keys = re.findall(r'"([^"]+)"', (re.findall(start + r"\(s\) in state_dict: (.+)", text) or [""])[0])
        if keys:
            found.append(f"{len(keys)} keys {word} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})")
    return f"does not fit the recipe's model: {'; '.join(found)}. Use the recipe that the checkpoint was made with"
