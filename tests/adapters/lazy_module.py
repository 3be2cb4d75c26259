"""A module that is slow to import."""

import time

time.sleep(0.6)

VALUE = 7
