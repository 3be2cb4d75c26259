"""Prepares the process of the tests."""

import signal

# A shell starts commands in the background with SIGINT and SIGQUIT ignored, and nohup ignores SIGHUP. Programs that the
# tests start would inherit that.
for _number, _handler in [
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
]:
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)
