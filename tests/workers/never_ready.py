"""A worker that never says that it is ready."""

import sys
import time

print("still thinking", file=sys.stderr, flush=True)
time.sleep(600)
