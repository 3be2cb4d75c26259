"""The adapter of the example `streaming_both_ways`."""

from collections.abc import Iterator

from snakepit_bridge import current_context


def running_mean(n: int) -> Iterator[float]:
    """Stream the mean of the host's measurements after each of them.

    Args:
        n: The number of measurements.
    """
    total = 0.0
    with current_context().stream_host_tool("measurements", n=n) as measurements:
        for count, value in enumerate(measurements, 1):
            total += value
            yield total / count
