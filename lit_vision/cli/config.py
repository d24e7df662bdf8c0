"""From the words of a command to settings, and from settings to RUN/config.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from lit_vision.cli.config_errors import COMMAND_KEYS, summarize_parser_error
from lit_vision.errors import UsageError
from lit_vision.io.redact import redact


class Parser(LightningArgumentParser):
    """Flags are never guessed from their beginnings, and an error is one line that names the key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Raises UsageError; jsonargparse collects those of nested parsers in the message of the outer one."""
        raise UsageError(summarize_parser_error(message)) from ex


class SaveConfig(SaveConfigCallback):
    """RUN/config.yaml: the complete settings of a fit, which `fit --config` takes as a recipe. Secrets are blotted out."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "config.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(to_plain_dict(self.parser, self.config), sort_keys=False))


def to_plain_dict(parser: LightningArgumentParser, config: Namespace) -> dict[str, Any]:
    """The settings as plain values, without what belongs to this command alone and without secrets."""
    settings = yaml.safe_load(parser.dump(config, skip_validation=True))
    return redact({k: v for k, v in settings.items() if k not in (*COMMAND_KEYS, "config", "ckpt_path", "verbose")})
