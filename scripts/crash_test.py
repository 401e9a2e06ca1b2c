"""Kill `gliclass classify --resume` at random moments until it has finished, and compare with an unbroken run.

    python scripts/crash_test.py --kills 50

Prints for each format of the output how often the run was killed, how many rows were safe at each kill, and whether the
files are the same to the byte. Ends with 1 where one is not.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gliclass_cli.resume import unfinished

FORMATS = ("jsonl", "csv", "jsonl.gz", "jsonl.zst")
CODES = (0, 5)


def write_input(path: Path, rows: int) -> None:
    """Write rows of CSV that are all different, some of several lines, some bad."""
    lines = [f"{n}\n" if n % 50 == 9 else f'{n},"order {n}\nis ""late"", {n * 7} days"\n' for n in range(rows)]
    path.write_text("id,text\n" + "".join(lines), "utf-8")


def start(folder: Path, ending: str) -> "subprocess.Popen[bytes]":
    """Start a run."""
    command = [sys.executable, "-m", "gliclass_cli", "classify", "in.csv", "-l", "billing", "-l", "shipping", "-q"]
    more = ["--max-length", "16", "--rejects", "bad.csv", "-o", f"out.{ending}", "--resume"]
    return subprocess.Popen([*command, *more], cwd=folder, stderr=subprocess.DEVNULL)


def finish(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Kill a run after so many seconds; tell whether it had finished before."""
    try:
        if (code := process.wait(seconds)) not in CODES:
            raise RuntimeError(f"gliclass ended with {code}")
        return True
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False


def break_runs(whole: Path, folder: Path, ending: str, kills: int, longest: float) -> tuple[list[int], list[bool]]:
    """Kill runs until ``kills`` are done and the file is there.

    A run that finished before all kills were done begins anew. Returns the rows safe at each kill, and whether each
    finished run gave the same files as the one in ``whole``.
    """
    out = folder / f"out.{ending}"
    safe: list[int] = []
    same: list[bool] = []
    while True:
        seconds = random.uniform(0.1, longest) if len(safe) < kills else 3600.0
        if finish(start(folder, ending), seconds):
            files = (out.name, "bad.csv")
            same.append(all((whole / file).read_bytes() == (folder / file).read_bytes() for file in files))
            if len(safe) == kills:
                return safe, same
            for path in folder.glob("out.*"):
                path.unlink()
        else:
            state = unfinished(str(out))
            safe.append(state.rows if state else 0)


def main() -> int:
    """Print a line for each format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    failed = False
    print(f"{'format':>10} {'kills':>5} {'finished':>8} {'seconds':>8}  result; rows safe at each kill", flush=True)
    for number, ending in enumerate(FORMATS):
        kills = len(range(number, arguments.kills, len(FORMATS)))
        with tempfile.TemporaryDirectory() as name:
            whole, broken = Path(name, "whole"), Path(name, "broken")
            whole.mkdir()
            write_input(whole / "in.csv", arguments.rows)
            shutil.copytree(whole, broken)
            begun = time.monotonic()
            finish(start(whole, ending), 3600.0)
            seconds = time.monotonic() - begun
            safe, same = break_runs(whole, broken, ending, kills, seconds)
        result = "the same bytes" if all(same) else "DIFFERENT"
        print(f"{ending:>10} {len(safe):>5} {len(same):>8} {seconds:>8.1f}  {result}; {safe}", flush=True)
        failed = failed or not all(same)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
