"""Ctrl-C, SIGTERM and SIGHUP: each of them ends a command with a `KeyboardInterrupt`, so that it can save its work.

SIGTERM comes from `kill`, `docker stop`, or a batch system at its time limit; SIGHUP comes from a terminal that closes.
"""

import contextlib
import signal
import threading

NAMES = "SIGINT", "SIGTERM", "SIGHUP"

# The number of the last signal that was received, or 0; whether it waits for `check`; and whether signals have to wait.
_received, _waiting, _held = 0, False, False


def exit_code():
    """Return the exit code of an interrupted command, 128 plus the number of the signal, as in a shell."""
    return 128 + (_received or signal.SIGINT)


def is_exit_code(code):
    """Return whether an exit code is that of an interrupted command."""
    return code - 128 in [getattr(signal, name, None) for name in NAMES]


def came_from_keyboard():
    """Return whether the last signal was Ctrl-C, which a terminal sends to all processes of a command."""
    return _received in (0, signal.SIGINT)


@contextlib.contextmanager
def as_interrupts():
    """Raise a `KeyboardInterrupt` for each of the signals that would end the process.

    Signals that are ignored, as by `nohup`, stay ignored.
    """
    global _received, _waiting, _held
    _received, _waiting, _held = 0, False, False
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    usual = signal.SIG_DFL, signal.default_int_handler
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) in usual}
    for number in before:
        signal.signal(number, _receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _waiting = False


def hold():
    """Let signals wait for `check` from now on, so that they do not end what has to be done as a whole."""
    global _held
    _held = True


def release():
    """Let signals interrupt again, and raise the `KeyboardInterrupt` of one that has waited."""
    global _held
    _held = False
    check()


@contextlib.contextmanager
def held():
    """Let signals wait until the end of a `with` block; a second one interrupts it."""
    hold()
    try:
        yield
    finally:
        release()


def check():
    """Raise the `KeyboardInterrupt` of a signal that has waited."""
    global _waiting
    if _waiting:
        _waiting = False
        raise KeyboardInterrupt


def _receive(number, _):
    global _received, _waiting
    # A batch system may send several of these; only Ctrl-C is meant each time.
    repeated = number != signal.SIGINT and _received not in (0, signal.SIGINT)
    _received = number
    if _held and not _waiting:
        _waiting = True
    elif not repeated:
        # Python drops an exception that comes up in a destructor. Then the next `check` raises it.
        _waiting = not _held
        raise KeyboardInterrupt
