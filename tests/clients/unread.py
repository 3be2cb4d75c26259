"""Scenarios of unread streams and watches, and of streams whose client is closed or freed. Prints `ok` at the end."""

import sys

import numpy as np

from snakepit_bridge.client import Client

#: The number of floats in an update of 9 MiB.
UPDATE = 9 * 1024 * 1024 // 8
#: The number of chunks of a stream, which exceeds the initial credit.
CHUNKS = 50_000


def unread_watches_do_not_delay_calls(address: str) -> None:
    """Large updates fill two unread watches on the connection of the calls."""
    with Client(address) as client, Client(address) as writer:
        writer.session("s")["x"] = np.zeros(UPDATE)
        unread = [client.session("s").watch("x") for _ in range(2)]
        for version in range(1, 4):
            writer.session("s")["x"] = np.full(UPDATE, float(version))
            assert client.options(timeout=20).call("add", a=1, b=version) == 1 + version
        for watch in unread:
            # The watch keeps the newest updates, and reports the dropped ones as lost.
            updates = [next(watch) for _ in range(2)]
            while updates[-1].variable is None or updates[-1].variable.version < 3:
                updates.append(next(watch))
            assert updates[-1].variable.value[0] == 3.0


def unread_streams_do_not_delay_calls(address: str) -> None:
    """Two streams stay unread for a while."""
    with Client(address) as client:
        unread = [client.stream("count", n=CHUNKS) for _ in range(2)]
        assert client.options(timeout=20).call("add", a=1, b=2) == 3
        assert all(sum(1 for _ in stream) == CHUNKS for stream in unread)


def a_stream_outlives_the_close_of_its_client(address: str) -> None:
    """A stream continues after the close of its client, even beyond its initial credit."""
    with Client(address) as client:
        stream = client.stream("count", n=CHUNKS)
        assert next(stream) == 1
    assert list(stream) == list(range(2, CHUNKS + 1))


def closing_a_stream_after_its_client_frees_the_worker(address: str) -> None:
    """Closing a stream after its client frees the worker."""
    client = Client(address)
    stream = client.stream("count", n=100_000_000)
    next(stream)
    client.close()
    stream.close()
    with Client(address) as other:
        assert other.options(timeout=20).call("add", a=1, b=2) == 3


def a_stream_outlives_the_last_reference_to_its_client(address: str) -> None:
    """A stream continues without a reference to its client."""
    assert list(Client(address).stream("count", n=CHUNKS)) == list(range(1, CHUNKS + 1))


if __name__ == "__main__":
    for scenario in (
        unread_watches_do_not_delay_calls,
        unread_streams_do_not_delay_calls,
        a_stream_outlives_the_close_of_its_client,
        closing_a_stream_after_its_client_frees_the_worker,
        a_stream_outlives_the_last_reference_to_its_client,
    ):
        scenario(sys.argv[1])
    print("ok")
