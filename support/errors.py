"""The error that a user can fix, and how a command ends: one line on standard error instead of a traceback."""

import importlib.util
import re
import sys
import warnings

# Exit code after Ctrl-C: 128 plus the number of the signal, as shells have it.
INTERRUPTED = 130

LOST = (
    "Another process of this run has ended or cannot be reached, so this one ends too. Look at the messages of the "
    "others, then start all of them again with --resume. Received: "
)

# What the command is about to end with, for what runs at the exit.
exit_code = 0


class InputError(Exception):
    """Something the user gave cannot be used: the message says what was found, what was expected and what to do."""


def require(module, purpose, package):
    """Raise an InputError that names the pip command if an optional package is missing."""
    if importlib.util.find_spec(module) is None:
        expected = f'{purpose} needs the package {module}: pip install "{package}"'
        raise InputError(f"{expected}. Received: an environment without it")


def printable(text):
    """Return the text with unprintable characters escaped: a file name may hold any byte, even a newline."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def run_main(main):
    """Call `main()` and exit with the code it returns; what the user can fix becomes one line and exit code 2.

    That is an `InputError`, another process that is lost, or a training step that needs too much memory. --debug prints
    the traceback as well.
    """
    global exit_code
    # A terminal or a log file may not have every character of a file name.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    # Pillow warns of large images and odd metadata, Matplotlib of characters that a font lacks.
    warnings.filterwarnings("ignore", module="PIL")
    warnings.filterwarnings("ignore", message="Glyph")
    try:
        exit_code = main()
    except KeyboardInterrupt:
        advice = "Only the files named above are saved. If the run had finished an epoch, --resume continues it"
        print(f"\nInterrupted. {advice}", file=sys.stderr)
        exit_code = INTERRUPTED
    except Exception as error:
        exit_code = 2
        message = _user_message(error)
        if message is None:
            raise
        if "--debug" in sys.argv:
            import traceback

            traceback.print_exc()
        print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(exit_code)


def _user_message(error):
    """Return the line for an error that the user can fix, or None."""
    _, wrapped, reason = str(error).partition("InputError: ")
    if isinstance(error, InputError):
        return str(error)
    if wrapped:  # raised in one of TensorFlow's threads, which wraps it
        return reason.splitlines()[0]
    if re.search(r"Gloo \w+ failed|NCCL|coordination service", str(error)):  # JAX raises several types
        return LOST + str(error).splitlines()[0][:200]
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        found = (str(error).splitlines() or ["no more memory"])[0][:200]
        expected = "expected room for one batch; try --batch-size 8, or half of what it was"
        return f"Not enough memory for a training step: {expected}. Received: {found}"
    return None
