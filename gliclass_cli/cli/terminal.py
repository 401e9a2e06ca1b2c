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

from gliclass_cli.errors import ExitCode


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


def harmless(text: str) -> str:
    """Return text of someone else's with a space for all that could steer a terminal or turn its letters round."""
    return "".join(character if character.isprintable() or character in "\n\t" else " " for character in text)


def say(message: str) -> None:
    """Write a message for people: to stderr, with the name of the command. It may quote files, labels and names."""
    try:
        sys.stderr.write(f"gliclass: {harmless(message)}\n")
        sys.stderr.flush()
    except OSError:
        pass  # nobody reads messages any more; the results and the exit code still count


def clean(argument: str) -> str:
    """Return a command line argument as valid text: bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(argument).decode("utf-8", "replace")


@contextmanager
def interruptible(unit: str = "the batch") -> Iterator[threading.Event]:
    """Set the event on the first Ctrl-C; the second one ends the process at once."""
    stop = threading.Event()

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(ExitCode.INTERRUPTED)
        stop.set()
        say(f"stopping after {unit} in hand; Ctrl-C again to stop at once")

    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield stop  # who starts a command in the background asks it to ignore Ctrl-C
        return
    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
