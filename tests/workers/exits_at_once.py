"""A worker that exits before it is ready."""

import sys

print("the license has expired", file=sys.stderr)
sys.exit(3)
