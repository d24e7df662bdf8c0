"""Remove secrets from everything that a run writes or prints: settings, results, W&B's config, messages."""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "***"
_NAMES = re.compile(r"(?:^|[_-])(?:key|token|secret|password|passwd|pass|credentials?|auth)$", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^/@\s'\"]+(?=@)")  # user:password@ of any address
_QUERY = re.compile(
    r"(?i)(?<=[?&;])((?:[\w.-]*[_-])?(?:key|token|secret|password|signature|sig|credential|auth)=)[^&\s'\"]+"
)
_KNOWN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|AKIA[A-Z0-9]{16}|sk-[\w-]{20,})\b"
)


def _environment_secrets() -> list[str]:
    """Return the values of environment variables with names of secrets; long ones first."""
    values = {value for name, value in os.environ.items() if _NAMES.search(name) and len(value) >= 8}
    return sorted(values, key=len, reverse=True)


def redact(value: Any) -> Any:
    """Return a text, or nested dicts and lists of texts, with secrets replaced by ***; other values as they are.

    Secrets are:
    - the values (8 characters or more) of environment variables named *_KEY, *_TOKEN, *_SECRET, *_PASSWORD and the like
      (WANDB_API_KEY);
    - the user and password before the @ of an address, and the parameters of an address that have such names;
    - keys of a known form (hf_..., ghp_...);
    - in a dict, the text under a key with such a name.
    """
    return _redact(value, _environment_secrets())


def _redact(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
        value = _QUERY.sub(rf"\1{HIDDEN}", _IN_URL.sub(HIDDEN, value))
        return _KNOWN.sub(HIDDEN, value)
    if isinstance(value, dict):
        return {
            key: HIDDEN
            if isinstance(key, str) and isinstance(inner, str) and inner and _NAMES.search(key)
            else _redact(inner, secrets)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_redact(inner, secrets) for inner in value)
    return value
