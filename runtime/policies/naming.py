"""What a policy is called in records and messages: its preset or modes, and a digest of all that its settings say."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from flatfleet.runtime.policies.settings import Settings, settings


def label(policy: Mapping[str, Any]) -> str:
    """Such as `auto#1f0c2a9b`: the same settings have the same digest, however they were written."""
    made = settings(policy)
    return f"{policy.get('preset') or '+'.join(made.mode)}#{digest(made)}"


def digest(made: Settings) -> str:
    """Eight hexadecimal digits over what differs from the defaults."""
    default = Settings()
    told = {each.name: getattr(made, each.name) for each in dataclasses.fields(made)}
    told = {name: value for name, value in told.items() if value != getattr(default, name)}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]


def digest_of(text: Any) -> str | None:
    """The digest in a label; None in anything else."""
    name, found, value = text.rpartition("#") if isinstance(text, str) else ("", "", "")
    return value if name and found else None
