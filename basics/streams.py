"""Standard output and standard error that never fail: a result must not be lost because a line cannot be printed."""

import contextlib
import errno
import io
import os
import select
import sys


def protect():
    """Let nothing that is printed raise an exception, whatever `sys.stdout` and `sys.stderr` are.

    They may be missing or closed, lack methods or characters, be a pipe whose reader has ended, or a full disk. The
    first line that is lost is reported on standard error. The streams of a notebook and of a test stay as they are.
    """
    _open_descriptors()
    for name in "stdout", "stderr":
        setattr(sys, name, _protected(getattr(sys, name), getattr(sys, f"__{name}__")))


def output_lost():
    """Write what is waiting, and return whether some of standard output could not be written.

    A pipe whose reader has ended, as in `| head -1`, has lost nothing that was wanted.
    """
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    raw = _raw(sys.stdout)
    return isinstance(raw, _Raw) and raw.fault is not None and raw.fault.errno != errno.EPIPE


def _open_descriptors():
    """Open the first three file descriptors if they are closed, or the next files would get their numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(opened, True)  # other programs that are started need them as well


def _raw(stream):
    """Return the lowest layer of a text stream, or None if it has no layers."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)  # `python -u` leaves the buffer out


def _protected(stream, original):
    """Return a stream that does what `stream` does, but does not fail; `original` is that of the process."""
    if stream is None or getattr(stream, "closed", False) or not hasattr(stream, "write"):
        return open(os.devnull, "w", encoding="utf-8")
    if isinstance(stream, _Adapter) or isinstance(_raw(stream), _Raw):
        return stream
    if stream is original and _raw(stream) is not None:
        raw = _Raw(_raw(stream), stream is sys.__stdout__)
        with contextlib.suppress(OSError):
            stream.flush()
        return io.TextIOWrapper(
            raw if stream.write_through else io.BufferedWriter(raw),
            stream.encoding,
            "backslashreplace",  # a terminal or a log file may lack a character of a file name
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
        return stream
    complete = all(hasattr(stream, name) for name in ("flush", "isatty", "encoding"))
    return stream if complete and "utf" in (stream.encoding or "utf").lower() else _Adapter(stream)


class _Raw(io.RawIOBase):
    """Pass bytes on until that fails; from then on, drop them.

    Args:
        raw: the raw stream to write to.
        reported: bool; the failure is reported on standard error.

    Attributes:
        fault: the OSError that ended it, or None.
    """

    def __init__(self, raw, reported):
        super().__init__()
        self.target, self.reported, self.fault = raw, reported, None

    def write(self, data):
        while self.fault is None:
            try:
                written = self.target.write(data)
                if written is not None:
                    return written
                select.select([], [self.target], [])  # a pipe that is full and does not wait by itself
            except (OSError, ValueError) as error:  # ValueError: it was closed
                self.fault = error if isinstance(error, OSError) else OSError(errno.EBADF, str(error))
                self._report()
        return len(data)

    def _report(self):
        if self.reported and sys.stderr is not None:
            problem = f"Standard output cannot be written ({self.fault.strerror})"
            print(f"{problem}: nothing more is printed, but files are saved as usual", file=sys.stderr, flush=True)

    def writable(self):
        return True

    def isatty(self):
        return self.target.isatty()

    def fileno(self):
        return self.target.fileno()


class _Adapter(io.TextIOBase):
    """A text stream around an object that has little more than `write`."""

    encoding = "utf-8"

    def __init__(self, target):
        super().__init__()
        self.target = target

    def write(self, text):
        with contextlib.suppress(Exception):  # any object may stand here
            try:
                self.target.write(text)
            except UnicodeError:
                self.target.write(text.encode("ascii", "backslashreplace").decode("ascii"))
        return len(text)

    def flush(self):
        with contextlib.suppress(Exception):
            self.target.flush()

    def writable(self):
        return True
