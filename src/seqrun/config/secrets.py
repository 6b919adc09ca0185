"""Secrets: which keys hold one, and configurations without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SECRETS = ("api_key", "apikey", "password", "secret", "token")
"""Ends of their keys."""


def without_secrets(value: Any) -> Any:
    """Return plain data with every value under a key that names a secret replaced by "***"."""
    if isinstance(value, Mapping):
        return {
            key: "***" if item and names_secret(key) else without_secrets(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_secrets(item) for item in value]
    return value


def names_secret(key: str) -> bool:
    """Return whether what stands under a key is nobody's business."""
    return any(str(key).lower().endswith(secret) for secret in SECRETS)
