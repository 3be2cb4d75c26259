"""A worker that never becomes ready."""

import sys
import time

print("still thinking", file=sys.stderr, flush=True)
time.sleep(600)
