"""Calls `add` once for each line on stdin, and prints the outcome. The argument is the host's address."""

import sys

from snakepit_bridge import HostUnavailableError
from snakepit_bridge.client import Client

client = Client(sys.argv[1])
for _ in sys.stdin:
    try:
        outcome = client.call("add", a=1, b=2)
    except HostUnavailableError as error:
        outcome = f"unavailable: {error}"
    print(outcome, flush=True)
