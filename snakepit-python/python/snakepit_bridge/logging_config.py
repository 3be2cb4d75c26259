"""Logging for adapters, with the names of the original Snakepit. The loggers are those of :mod:`logging`."""

from __future__ import annotations

import logging
import os
import sys

#: The values of ``SNAKEPIT_LOG_LEVEL``.
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "none": logging.CRITICAL + 1,
}

_FORMAT = "%(asctime)s - [%(threadName)s] - %(name)s - %(levelname)s - [corr=%(correlation_id)s] %(message)s"


def configure_logging(force: bool = False) -> None:
    """Write the records of all loggers to stderr, from the level of ``SNAKEPIT_LOG_LEVEL`` on.

    The variable is ``debug``, ``info``, ``warning``, ``error`` (the default) or ``none``, which disables logging.

    Args:
        force: Whether to replace handlers that the root logger has. Without it, they stay unchanged.
    """
    from snakepit_bridge.telemetry import correlation_filter

    level = _LEVELS.get(os.environ.get("SNAKEPIT_LOG_LEVEL", "error").lower(), logging.ERROR)
    logging.disable(logging.CRITICAL if level > logging.CRITICAL else logging.NOTSET)
    root = logging.getLogger()
    is_new = force or not root.handlers
    logging.basicConfig(level=level, format=_FORMAT, stream=sys.stderr, force=force)
    if is_new:
        # The format needs the attribute in records of every logger, so the handlers set it.
        for handler in root.handlers:
            handler.addFilter(correlation_filter())


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module. All of them are below the logger ``snakepit``.

    >>> get_logger("shop").name
    'snakepit.shop'
    """
    if name.startswith("snakepit."):
        return logging.getLogger(name)
    if name.startswith("snakepit_bridge."):
        return logging.getLogger(f"snakepit.bridge.{name.removeprefix('snakepit_bridge.')}")
    return logging.getLogger(f"snakepit.{name}")
