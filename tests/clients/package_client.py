"""The package client of docs/clients.md. The argument is the host's address."""

import sys

from snakepit_bridge.client import Client

with Client(sys.argv[1]) as client:
    print(client.call("add", a=1, b=2.5))
    print(list(client.stream("count", n=3)))
    print(client.options(timeout=5, idempotent=True).call("add", a=1, b=2))

    session = client.session("alice")
    print(session.call("whoami")["session_id"])
    session["rate"] = 0.1
    session.programs["model"] = b"weights"
    with session.watch("rate") as updates:
        print(session.update("rate", lambda rate: rate * 2))
        for update in updates:
            print(update.kind, update.variable.version, update.variable.value)
            break
