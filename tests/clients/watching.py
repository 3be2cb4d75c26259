"""Watches the variable `x` of a session until it is killed. Prints `watching` after the first update.

Usage: watching.py HOST:PORT SESSION
"""

import sys

from snakepit_bridge.client import Client

with Client(sys.argv[1]) as client, client.session(sys.argv[2]).watch("x", initial=True) as updates:
    for number, _ in enumerate(updates):
        if number == 0:
            sys.stdout.write("watching\n")
            sys.stdout.flush()
