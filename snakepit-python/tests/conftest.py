"""Prepares the process of the tests."""

import signal

# A shell starts commands in the background with SIGINT and SIGQUIT ignored, and nohup ignores SIGHUP. Programs that the
# tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)
