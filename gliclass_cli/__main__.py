"""Entry point of the command ``gliclass`` and of ``python -m gliclass_cli``."""

import os
import signal
import sys


def main() -> None:
    """Run the command line; answer ``--version`` before anything is imported."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until rows are computed Ctrl-C ends the process as it ends any other: at once, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.argv[1:2] != ["export"]:  # the others multiply no large matrices with numpy: threads only delay the start
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _open_closed_streams()
    if sys.argv[1:] in (["--version"], ["-V"]):
        from gliclass_cli import __version__

        sys.stdout.write(f"gliclass {__version__}\n")
        return
    from gliclass_cli.cli.app import run

    run()


def _open_closed_streams() -> None:
    """Put something in the place of a closed standard stream, so that no file of ours gets its number.

    Reading finds the end, messages vanish, and results cannot be written.
    """
    if sys.stdin is None:
        sys.stdin = os.fdopen(_null(0, os.O_RDONLY))
    if sys.stdout is None:
        sys.stdout = os.fdopen(_null(1, os.O_RDONLY), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(_null(2, os.O_WRONLY), "w")


def _null(number: int, mode: int) -> int:
    opened = os.open(os.devnull, mode)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    return number


if __name__ == "__main__":
    main()
