"""Ctrl-C for programs that tests start."""

import signal


def heard() -> None:
    """Let a child be interrupted: what a shell starts in the background is not, and hands that on to all it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
