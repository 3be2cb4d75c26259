"""The token and the headers of a client, with a server that requires them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from snakepit_bridge import AccessDeniedError, AsyncClient, Client, InvalidArgumentError


class Guarded(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A server that requires a token, answers requests with nothing, and keeps streams open."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[str, str]] = {}

    def service(self, details: Any) -> Any:
        headers = dict(details.invocation_metadata)
        method = details.method.rpartition("/")[2]
        self.seen[method] = headers
        is_permitted = headers.get("authorization") == "Bearer secret"

        def answer(_: object, context: grpc.ServicerContext) -> bytes:
            if not is_permitted:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is wrong")
            return b""

        def stream(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            if not is_permitted:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is wrong")
            context.send_initial_metadata(())
            # Until the client ends the stream.
            yield from (message for message in messages if False)

        if method == "Multiplex":
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def guarded() -> Guarded:
    return Guarded()


@pytest.fixture
def address(guarded: Guarded) -> Iterator[str]:
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers((guarded,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(0).wait()


def test_each_request_has_the_token_and_the_headers(address: str, guarded: Guarded) -> None:
    with Client(address, token="secret", headers={"Tenant": "acme"}) as client:  # noqa: S106
        assert client.tools() == {}
        client.session("s")
    assert {"Multiplex", "ListTools", "InitializeSession"} <= guarded.seen.keys()
    for method, headers in guarded.seen.items():
        assert (headers["authorization"], headers["tenant"]) == ("Bearer secret", "acme"), method

    async def run() -> None:
        async with AsyncClient(address, token="secret", headers={"tenant": "other"}) as client:  # noqa: S106
            assert await client.workers() == []

    asyncio.run(run())
    for method in ("Multiplex", "ListWorkers"):
        assert guarded.seen[method]["tenant"] == "other"


@pytest.mark.parametrize("token", [None, "old"])
def test_a_wrong_token_is_denied_by_every_request(address: str, token: str | None) -> None:
    with pytest.raises(AccessDeniedError, match="the token is wrong"):
        Client(address, token=token)
    client = Client(address, connect=False, token=token)
    for request in (client.tools, lambda: client.call("add"), lambda: client.session("s"), client.wait_ready):
        with pytest.raises(AccessDeniedError, match="the token is wrong") as caught:
            request()
        assert not caught.value.is_retryable


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": "a\nb"}, "authorization"),
        ({"token": 5}, "token"),
        ({"token": "a", "headers": {"Authorization": "b"}}, "authorization"),
        ({"headers": {"grpc-timeout": "1S"}}, "`grpc-timeout`"),
        ({"headers": {"blob-bin": "x"}}, "`blob-bin`"),
        ({"headers": {"Connection": "x"}}, "`Connection`"),
        ({"headers": {"a b": "x"}}, "`a b`"),
        ({"headers": {"": "x"}}, "``"),
        ({"headers": {"a": "x\0"}}, "`a`"),
        ({"headers": {"a": 1}}, "header a"),
        ({"headers": {1: "a"}}, "header"),
        ({"headers": "a"}, "headers"),
    ],
)
def test_invalid_headers_are_named_without_their_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        Client("127.0.0.1:1", connect=False, **options)
    assert "\n" not in str(caught.value)
