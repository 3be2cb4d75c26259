"""The client of `docs/clients.md` that the package brings."""

import sys

from snakepit_bridge.client import Client

with Client(sys.argv[1]) as client:
    print(client.call("add", a=1, b=2.5))
    print(list(client.stream("count", n=3)))
    print(client.options(timeout=5, idempotent=True).call("add", a=1, b=2))
    print(client.session("alice").call("whoami")["session_id"])
