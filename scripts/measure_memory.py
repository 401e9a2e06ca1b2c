"""Measure the memory of `gliclass classify` against the length of its input: short distinct rows through a pipe.

    python scripts/measure_memory.py --rows 10000 1000000

Texts are cut to a few tokens, so that a million rows of the real model take minutes; the window, the queues and the
caches are as full as in any other run. `--model` takes another folder: a tiny one tells within minutes what reading,
queues, caches and writing need.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from typing import IO


def feed(stream: IO[bytes], rows: int) -> None:
    """Write rows that are all different."""
    with stream:
        for start in range(0, rows, 1000):
            numbers = range(start, min(rows, start + 1000))
            stream.write(b"".join(b'{"id":%d,"text":"order %d is late"}\n' % (n, n) for n in numbers))


def measure(rows: int, model: str, max_length: int) -> tuple[float, float]:
    """Return the largest resident memory (MB) and the seconds of a run over ``rows`` rows."""
    reading = ["--model", model, "--max-length", str(max_length)]
    command = [sys.executable, "-m", "gliclass_cli", "classify", "-q", *reading]
    start = time.monotonic()
    process = subprocess.Popen([*command, "-l", "billing", "-l", "shipping", "-o", os.devnull], stdin=subprocess.PIPE)
    if process.stdin is None:
        raise RuntimeError("no pipe")
    feeder = threading.Thread(target=feed, args=(process.stdin, rows))
    feeder.start()
    _, status, usage = os.wait4(process.pid, 0)
    feeder.join()
    if status:
        raise RuntimeError(f"gliclass ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 1024, time.monotonic() - start


def main() -> None:
    """Print a line for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--model", default="default", metavar="FOLDER")
    parser.add_argument("--max-length", type=int, default=8)
    arguments = parser.parse_args()
    print(f"{'rows':>10} {'memory MB':>10} {'seconds':>8} {'rows/s':>8}")
    for rows in arguments.rows:
        memory, seconds = measure(rows, arguments.model, arguments.max_length)
        print(f"{rows:>10,} {memory:>10.1f} {seconds:>8.1f} {rows / seconds:>8.0f}", flush=True)


if __name__ == "__main__":
    main()
