"""Prepares the process of the tests."""

import signal

# A shell starts commands in the background with SIGINT ignored, and programs that the tests start inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
