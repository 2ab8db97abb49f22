"""Whose fault an error is: the item's, which costs an attempt, or the provider's or the store's, which does not."""

from __future__ import annotations

from typing import Any

from flatfleet.runtime.errors import OutputError, StoreError
from flatmachines.execution import RetryableError

PROVIDER_CODES = frozenset({"rate_limit", "server_error", "timeout", "model_unavailable", "insufficient_funds"})
PROVIDER_STATUS = frozenset({402, 408, 429, 500, 502, 503, 504, 529})


def describe(error: BaseException) -> dict[str, Any]:
    """What an action needs to know of an error, as data: type, message, permanent, provider, retry_after (seconds)."""
    info = getattr(error, "error_info", None) if isinstance(error, RetryableError) else None
    info = info if isinstance(info, dict) else {}
    provider = (
        isinstance(error, StoreError | OutputError)
        or info.get("code") in PROVIDER_CODES
        or info.get("status_code") in PROVIDER_STATUS
    )
    return {
        "type": str(info.get("type") or type(error).__name__),
        "message": str(error) or type(error).__name__,
        "permanent": bool(getattr(error, "permanent", False)),
        "provider": provider,
        "retry_after": info.get("retry_after"),
    }
