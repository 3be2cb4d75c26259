"""The fixtures of snakepit_bridge for pytest. Importing this module imports only pytest."""

from __future__ import annotations

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from snakepit_bridge.testing import Daemon, ToolTester


@pytest.fixture
def snakepit_tester() -> Iterator[Callable[..., ToolTester]]:
    """Return a function that creates a tester of an adapter. The fixture closes all testers after the test.

    The function takes the arguments of :class:`snakepit_bridge.testing.ToolTester`.

    >>> def test_price(snakepit_tester):  # doctest: +SKIP
    ...     assert snakepit_tester(Shop).call("price", item="tea") == 9.99
    """
    from contextlib import ExitStack

    from snakepit_bridge.testing import ToolTester

    with ExitStack() as stack:
        yield lambda adapter, **options: stack.enter_context(ToolTester(adapter, **options))


@pytest.fixture(scope="session")
def snakepit_daemon() -> Iterator[Callable[..., Daemon]]:
    """Return a function that starts a real daemon on a free address. The fixture stops all daemons after the tests.

    The function takes the arguments of :class:`snakepit_bridge.testing.Daemon`. It starts one daemon for equal
    arguments, which tests share. Use a separate session in each test, or pass ``shared=False`` for a new daemon.

    >>> def test_price(snakepit_daemon):  # doctest: +SKIP
    ...     client = snakepit_daemon("shop:Shop", workers=2).client()
    ...     assert client.session("test_price").call("price", item="tea") == 9.99
    """
    from contextlib import ExitStack

    from snakepit_bridge.testing import Daemon

    daemons: dict[str, Daemon] = {}
    with ExitStack() as stack:

        def start(adapter: str, *, shared: bool = True, **options: Any) -> Daemon:
            key = repr((adapter, sorted(options.items())))
            if not shared:
                return stack.enter_context(Daemon(adapter, **options))
            # A test may have stopped it.
            if key not in daemons or not daemons[key].is_running:
                daemons[key] = stack.enter_context(Daemon(adapter, **options))
            return daemons[key]

        yield start
