"""Sends and receives values of every type. Prints the problems. The argument is the host's address."""

import sys

from snakepit_bridge.client import Client
from value_samples import SAMPLES, problem, sent, unwrapped, wrapped

checks = 0
problems: list[str] = []
with Client(sys.argv[1]) as client:
    for depth in (0, 2):
        streamed = iter(client.stream("make_all", depth=depth))
        for name in SAMPLES:
            try:
                found = [
                    client.call("check_argument", name=name, depth=depth, value=wrapped(sent(name), depth)),
                    problem(name, unwrapped(client.call("make", name=name, depth=depth), depth)),
                    problem(name, unwrapped(next(streamed), depth)),
                ]
                chunks = list(client.stream("repeat", value=wrapped(sent(name), depth)))
                found += [problem(name, unwrapped(chunk, depth)) for chunk in (chunks[0], chunks[1][0])]
            except Exception as error:
                found = [f"{name}: {error!r}"]
            checks += len(found)
            problems += [f"depth {depth}: {text}" for text in found if text is not None]
    problems += client.session("whole").call("check_places")
print(len(SAMPLES), checks)
print("\n".join(problems))
