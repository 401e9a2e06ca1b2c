"""The process around a command: its streams, its terminal, its signals."""

import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from shutil import get_terminal_size
from types import FrameType
from typing import TextIO

from gliclass_cli.errors import ExitCode, Interrupted

_ASK_TO_STOP = {
    signal.SIGHUP: ExitCode.HUNG_UP,
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.TERMINATED,
}


def is_terminal(stream: object) -> bool:
    """Tell whether a person watches this stream."""
    isatty = getattr(stream, "isatty", None)
    return bool(isatty and isatty())


def is_pipe(stream: TextIO) -> bool:
    """Tell whether another program reads this stream."""
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False


def wants_color(stream: object) -> bool:
    """Tell whether colours may be used on a stream: never off a terminal, with NO_COLOR or on a dumb one."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def can_show(character: str) -> bool:
    """Tell whether standard output's encoding has a character."""
    try:
        character.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def width() -> int:
    """Return the width of the terminal in columns; 80 where there is none."""
    return get_terminal_size((80, 24)).columns


def say(message: str) -> None:
    """Write a message for people: to stderr, with the name of the command."""
    try:
        sys.stderr.write(f"gliclass: {message}\n")
        sys.stderr.flush()
    except OSError:
        pass  # nobody reads messages any more; the results and the exit code still count


def clean(argument: str) -> str:
    """Return a command line argument as valid text: bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(argument).decode("utf-8", "replace")


@contextmanager
def interruptible(unit: str = "the batch") -> Iterator[threading.Event]:
    """Set the event on the first Ctrl-C, SIGTERM or SIGHUP; a second Ctrl-C ends the process at once.

    Interrupted, where it passes, gets the exit code of the signal.
    """
    stop = threading.Event()
    received: list[int] = []

    def on_signal(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and stop.is_set():
            os._exit(ExitCode.INTERRUPTED)
        if stop.is_set():
            return  # a terminal that goes away, and its shell, both say so
        received.append(signum)
        stop.set()
        again = "; Ctrl-C again to stop at once" if signum == signal.SIGINT else ""
        say(f"stopping after {unit} in hand{again}")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # Who starts a command in the background asks it to ignore Ctrl-C; nohup, to ignore SIGHUP.
    before = {number: handler for number in _ASK_TO_STOP if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    except Interrupted as error:
        if received:
            error.exit_code = _ASK_TO_STOP[signal.Signals(received[0])]
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
