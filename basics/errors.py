"""Errors that the user can fix. They end a command with one line on standard error instead of a traceback."""

import contextlib
import importlib.util
import os
import re
import sys
import warnings

from basics import signals, streams

LOST = (
    "Lost contact with another process of this run; stopping. "
    "Check the other processes' output, then restart all of them with --resume"
)

# The command's exit code, for functions that run at exit.
exit_code = 0

# Whether there is a checkpoint from which an interrupted command can continue.
resumable = False


class InputError(Exception):
    """Something that the user gave cannot be used. The message is "problem (got X). fix".

    Args:
        problem: str, what is wrong, without a period at the end.
        fix: str, what to do about it, without a period at the end; "" if that is obvious.
        got: the value that was found, if it helps.
    """

    def __init__(self, problem, fix="", got=None):
        if got is not None:
            problem = f"{problem} (got {got})"
        super().__init__(f"{problem}. {fix}" if fix else problem)


class NothingToDo(Exception):
    """The command has nothing left to do; its message says why. The exit code is 0."""


def require(module, purpose, package):
    """Raise an InputError with the pip command if an optional package is missing."""
    if importlib.util.find_spec(module) is None:
        raise InputError(f'{purpose} needs {module}: pip install "{package}"')


def first_line(error, limit=200):
    """Return the first line of an exception's message, or the name of its type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else type(error).__name__


def printable(text):
    """Return the text with unprintable characters escaped: a file name may contain any byte, even a newline."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


@contextlib.contextmanager
def one_line_errors():
    """Turn errors that the user can fix into one line on standard error and exit code 2.

    These are an `InputError`, a lost connection to another process, and too little memory or disk space. --debug also
    prints the traceback. Ctrl-C gives exit code 130, SIGTERM 143. Exit code 0 becomes 1 if standard output is lost.
    """
    global exit_code
    streams.protect()
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _report_uncaught
    for name in [name for name in os.environ if name.startswith("TQDM_")]:
        del os.environ[name]  # they change progress bars, and a wrong value ends the command
    # Pillow warns about large images and odd metadata, Matplotlib about characters that a font lacks.
    warnings.filterwarnings("ignore", module="PIL")
    warnings.filterwarnings("ignore", message="Glyph")
    try:
        with signals.as_interrupts():
            yield
    except NothingToDo as reason:
        print(printable(str(reason)))
        exit_code = int(streams.output_lost())
        sys.exit(exit_code)
    except SystemExit as error:
        if not error.code and streams.output_lost():
            sys.exit(1)
        raise
    except KeyboardInterrupt:
        _report_interrupt()
        exit_code = signals.exit_code()
        sys.exit(exit_code)
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


def run_main(main, *args):
    """Call `main(*args)` and exit with the code it returns; see `one_line_errors`."""
    global exit_code
    with one_line_errors():
        exit_code = main(*args) or int(streams.output_lost())
    if exit_code:  # a notebook shows every SystemExit, even one with code 0
        sys.exit(exit_code)


def _report_uncaught(kind, error, traceback):
    """Print one line instead of a traceback if Ctrl-C comes between two blocks of `one_line_errors`."""
    if issubclass(kind, KeyboardInterrupt):
        _report_interrupt()
    else:
        sys.__excepthook__(kind, error, traceback)


def _report_interrupt():
    advice = "; --resume continues after the last epoch that had finished" if resumable else ""
    print(f"\nInterrupted. Only the files listed above were saved{advice}", file=sys.stderr)


def _user_message(error):
    """Return the message for an error that the user can fix, or None."""
    text = str(error)
    if isinstance(error, InputError):
        return text
    if "InputError: " in text:  # TensorFlow wraps what is raised in one of its threads
        return first_line(text.partition("InputError: ")[2], limit=None)
    if re.search(r"Gloo [\w-]+ failed|NCCL|coordination service", text):  # JAX raises several types
        return f"{LOST} (got {first_line(error)})"
    if isinstance(error, FileNotFoundError) and "temporary directory" in text:  # from tempfile
        return "No folder for temporary files can be written to. Set the environment variable TMPDIR to one"
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        if "No space left" in text:  # TensorFlow has one type for a full disk and for full memory
            return f"The disk is full (got {first_line(error)}). Free some space, or choose another --output-dir"
        return f"Not enough memory (got {first_line(error)}). Try half the --batch-size, or close other programs"
    return None
