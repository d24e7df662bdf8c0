"""Parse command-line arguments and recipes to a config, and save it as RUN/config.yaml."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from lit_vision.cli.config_errors import COMMAND_KEYS, summarize_parser_error
from lit_vision.errors import UsageError
from lit_vision.io.atomic import atomic_write
from lit_vision.io.redact import redact

# Old class path: new class path. Recipes and the config.yaml of older runs contain the old ones.
MOVED_CLASSES = {
    "lit_vision.callbacks.monitors.Collapse": "lit_vision.callbacks.anomalies.Collapse",
    "lit_vision.callbacks.monitors.LossSpike": "lit_vision.callbacks.anomalies.LossSpike",
    "lit_vision.checkpoint_files.AtomicIO": "lit_vision.runs.checkpoint_io.AtomicCheckpointIO",
    "lit_vision.checkpointing.KeyedRandomness": "lit_vision.callbacks.checkpoint.SeedEachBatch",
    "lit_vision.checkpointing.LastCheckpoint": "lit_vision.callbacks.checkpoint.LastCheckpoint",
    "lit_vision.data.annotated.AnnotatedDataModule": "lit_vision.data.AnnotatedDataModule",
    "lit_vision.loggers.RunCSVLogger": "lit_vision.runs.loggers.RunCSVLogger",
    "lit_vision.methods.detector.Detector": "lit_vision.methods.Detector",
    "lit_vision.methods.segmenter.Segmenter": "lit_vision.methods.Segmenter",
    "lit_vision.sharding.Sharded": "lit_vision.runs.fsdp.FSDP2Strategy",
}
_MOVED = re.compile(rf"\b({'|'.join(map(re.escape, MOVED_CLASSES))})\b")
_load_yaml = get_loader("yaml")


def current_class_paths(text: str) -> str:
    """Return a recipe's text or a command-line argument with old class paths replaced by the new ones."""
    return _MOVED.sub(lambda match: MOVED_CLASSES[match[1]], text)


def _expand_home(value: Any) -> Any:
    """Return a recipe's value with `~/` at the beginning of texts as the home folder."""
    if isinstance(value, dict):
        return {key: _expand_home(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_expand_home(entry) for entry in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


# jsonargparse reads each recipe through this loader
set_loader("yaml", lambda text: _expand_home(_load_yaml(current_class_paths(text))), exceptions=(yaml.YAMLError,))


class Parser(LightningArgumentParser):
    """jsonargparse's parser without abbreviated flags, whose errors are one line that names the key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Raise UsageError; jsonargparse collects those of nested parsers in the message of the outer one."""
        raise UsageError(summarize_parser_error(message, self.prog.rpartition(" ")[2])) from ex


class SaveConfig(SaveConfigCallback):
    """Save the complete config of a fit as RUN/config.yaml, a recipe for `fit --config`; secrets are redacted."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "config.yaml"
            text = yaml.safe_dump(to_plain_dict(self.parser, self.config), sort_keys=False)
            atomic_write(path, lambda file: file.write_text(text))


def to_plain_dict(parser: LightningArgumentParser, config: Namespace) -> dict[str, Any]:
    """Return the config as plain values, without keys that only concern this command and without secrets."""
    values = yaml.safe_load(parser.dump(config, skip_validation=True))
    dropped = (*COMMAND_KEYS, "config", "ckpt_path", "verbose")
    redacted: dict[str, Any] = redact({key: value for key, value in values.items() if key not in dropped})
    return redacted
