"""A worker that exits before it is ready."""

import sys

print("the licence has expired", file=sys.stderr)
sys.exit(3)
