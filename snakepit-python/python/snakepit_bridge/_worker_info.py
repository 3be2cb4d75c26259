"""The place of a worker in its pool."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class WorkerInfo:
    """The place of a worker in its pool. See :func:`worker_info`."""

    __slots__ = ("count", "gpu", "id", "index", "pool")

    def __init__(self, id: str, pool: str, index: int, count: int, gpu: str | None) -> None:  # noqa: A002
        #: The id of the worker, such as ``default-2-3``. The replacement of a lost worker has a new id.
        self.id = id
        #: The name of the pool.
        self.pool = pool
        #: The index of the worker, from 0 to ``count - 1``. The replacement of a lost worker has the same index.
        self.index = index
        #: The number of workers in the pool.
        self.count = count
        #: The GPU that the host assigned, as in ``CUDA_VISIBLE_DEVICES``. ``None`` without the option ``--gpus``.
        self.gpu = gpu

    def __eq__(self, other: object) -> bool:
        """Return whether all attributes are equal."""
        return isinstance(other, WorkerInfo) and self._values() == other._values()

    def __hash__(self) -> int:
        """Return a hash of all attributes."""
        return hash(self._values())

    def __repr__(self) -> str:
        """Return a representation with all attributes."""
        return (
            f"WorkerInfo(id={self.id!r}, pool={self.pool!r}, index={self.index}, count={self.count}, gpu={self.gpu!r})"
        )

    def _values(self) -> tuple[Any, ...]:
        return self.id, self.pool, self.index, self.count, self.gpu


def worker_info() -> WorkerInfo:
    """Return the place of this worker in its pool. Works at import time, in the hooks of the adapter, and in tools.

    Outside a worker, such as in a test, it describes the only worker of a pool without a name.

    >>> worker_info()  # doctest: +SKIP
    WorkerInfo(id='default-1-1', pool='default', index=1, count=4, gpu=None)
    """
    variable = os.environ.get
    return WorkerInfo(
        id=variable("SNAKEPIT_WORKER_ID") or f"python-{os.getpid()}",
        pool=variable("SNAKEPIT_POOL") or "",
        index=int(variable("SNAKEPIT_WORKER_INDEX") or 0),
        count=int(variable("SNAKEPIT_WORKER_COUNT") or 1),
        gpu=variable("SNAKEPIT_GPU") or None,
    )
