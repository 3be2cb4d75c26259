"""Heartbeats of the original Snakepit. They have no effect, because the host watches its workers itself."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

#: The strings that mean true.
_TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})


@dataclass(frozen=True)
class HeartbeatConfig:
    """The settings of a :class:`HeartbeatClient`. Times are in milliseconds."""

    enabled: bool = True
    interval_ms: int = 2_000
    timeout_ms: int = 10_000
    max_missed_heartbeats: int = 3
    initial_delay_ms: int = 0
    jitter_ms: int = 0
    dependent: bool = True

    @classmethod
    def from_mapping(
        cls, options: Mapping[str, Any] | None, *, defaults: HeartbeatConfig | None = None
    ) -> HeartbeatConfig:
        """Create settings from a mapping. Unknown keys and values that cannot be converted have no effect.

        Args:
            options: The settings. Keys may have the form ``intervalMs`` as well as ``interval_ms``.
            defaults: The settings that the mapping does not change.
        """
        base = defaults or cls()
        settings = {field.name: getattr(base, field.name) for field in fields(cls)}
        for key, value in (options or {}).items():
            name = re.sub(r"([A-Z])", r"_\1", str(key)).lower()
            if name in settings:
                settings[name] = _converted(value, settings[name])
        return cls(**settings)


class HeartbeatClient:
    """A client that accepts the settings and methods of the original Snakepit, and sends nothing."""

    def __init__(
        self,
        stub: object,
        session_id: str,
        config: HeartbeatConfig | None = None,
        *,
        loop: object = None,
        on_threshold_exceeded: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        del stub, loop, on_threshold_exceeded
        self._session_id = session_id
        self._config = config or HeartbeatConfig()

    @property
    def config(self) -> HeartbeatConfig:
        """The settings."""
        return self._config

    def start(self) -> bool:
        """Return ``False``: no heartbeats are sent."""
        return False

    async def stop(self) -> None:
        """Return immediately."""

    async def ping_once(self) -> None:
        """Return immediately."""

    def status(self) -> dict[str, Any]:
        """Return the state of a client that has not sent a heartbeat."""
        return {
            "enabled": self._config.enabled,
            "running": False,
            "session_id": self._session_id,
            "missed_heartbeats": 0,
            "last_success": None,
            "last_error": None,
        }


def _converted(value: Any, default: Any) -> Any:
    if isinstance(default, bool):
        return value.strip().lower() in _TRUE if isinstance(value, str) else bool(value)
    try:
        number = int(value)
    except (TypeError, ValueError):
        return default
    return number if number >= 0 else default
