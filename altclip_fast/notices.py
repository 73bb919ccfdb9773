"""Messages to the user: each fallback or adjustment is said once per process, and never on stdout."""

from __future__ import annotations

import threading
import warnings

_said: set[str] = set()
_lock = threading.Lock()


def warn_once(key: str, message: str) -> None:
    """Issue `message` as a `UserWarning` the first time `key` is seen in this process.

    Args:
        key: names the situation ("text-truncated"), not the instance, so that a million rows give one line.
        message: what happened, with the count or value, and what the user can do.
    """
    with _lock:
        if key in _said:
            return
        _said.add(key)
    warnings.warn(message, UserWarning, stacklevel=3)


def mark_said(key: str) -> None:
    """As if `key` had been said: to someone who knows."""
    with _lock:
        _said.add(key)


def forget(key: str | None = None) -> None:
    """Let `key` (or every key) be said again. For tests."""
    with _lock:
        if key is None:
            _said.clear()
        else:
            _said.discard(key)
