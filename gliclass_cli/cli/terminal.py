"""The process around a command: its streams, its terminal, its signals."""

import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

from gliclass_cli.errors import ExitCode, Interrupted

_ASK_TO_STOP = {
    signal.SIGHUP: ExitCode.HUNG_UP,
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.TERMINATED,
}

_STYLES = {"bold": "1", "dim": "2", "green": "32", "yellow": "33"}


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
    """Tell whether colours may be used on a stream.

    Never with NO_COLOR; off a terminal and on a dumb one only with FORCE_COLOR.
    """
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (is_terminal(stream) and not _is_dumb())


def styled(text: str, style: str, stream: object) -> str:
    """Return text in a style (see ``_STYLES``), plain where no colours are wanted on a stream."""
    return f"\033[{_STYLES[style]}m{text}\033[0m" if text and wants_color(stream) else text


def can_show(character: str, stream: TextIO) -> bool:
    """Tell whether a stream's encoding, and the terminal, have a character; a dumb one has ASCII only."""
    try:
        character.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return not _is_dumb()


def width(stream: TextIO) -> int:
    """Return the width of a stream's terminal in columns: COLUMNS, if set; 80 where there is none."""
    try:
        usual = os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        usual = 80
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and int(columns) else usual


def _is_dumb() -> bool:
    return os.environ.get("TERM") == "dumb"


def harmless(text: str) -> str:
    """Return text of someone else's with a space for all that could steer a terminal or turn its letters round."""
    return "".join(character if character.isprintable() or character in "\n\t" else " " for character in text)


def say(message: str) -> None:
    """Write a message for people: to stderr, with the name of the command. It may quote files, labels and names."""
    tell(f"gliclass: {harmless(message)}\n")


def tell(text: str) -> None:
    """Write text for people to stderr, as it is."""
    try:
        sys.stderr.write(text)
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
