"""Build sdist and wheel, install the wheel alone with each Python given, and use it without a network.

    python scripts/check_wheel.py python3.11 python3.12 python3.13

For each Python: a new environment, the base install, its size; then in a network namespace of its own (where the
system lets us make one) a text is labelled with the bundled model, `doctor` is content, and man pages and completions
lie where shells and `man` look for them. Prints a line for each Python; the exit code is 1 where one fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
NO_NETWORK: Final = ("unshare", "--net", "--map-root-user")
INSTALLED: Final = (
    "share/man/man1/gliclass.1",
    "share/man/man1/gliclass-classify.1",
    "share/bash-completion/completions/gliclass.bash",
    "share/zsh/site-functions/_gliclass",
    "share/fish/vendor_completions.d/gliclass.fish",
)


def main() -> int:
    """Build, then check with each Python."""
    if not sys.argv[1:] or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run(sys.executable, "-m", "hatchling", "build", "-d", str(folder))
        for file in sorted(folder.iterdir()):
            print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")
        [wheel] = folder.glob("*.whl")
        failed = [python for python in sys.argv[1:] if not check(python, wheel, folder / f"{Path(python).name}-env")]
    return 1 if failed else 0


def check(python: str, wheel: Path, environment: Path) -> bool:
    """Install the wheel in a new environment and use it; tell how it went."""
    try:
        version = run(python, "--version").strip()
        run(python, "-m", "venv", str(environment))
        pip = [str(environment / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        run(*pip, "--constraint", str(ROOT / "constraints.txt"), str(wheel))
        size = sum(file.stat().st_size for file in environment.rglob("*") if file.is_file() and not file.is_symlink())
        offline = (
            ["unshare", "--net", "--map-root-user"] if works("unshare", "--net", "--map-root-user", "true") else []
        )
        gliclass = [*offline, str(environment / "bin" / "gliclass")]
        row = json.loads(run(*gliclass, "tag", "I was charged twice", "-l", "billing", "-l", "praise"))
        run(*gliclass, "doctor")
        missing = [name for name in INSTALLED if not (environment / name).is_file()]
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        print(f"{python}: {error}\n{getattr(error, 'stderr', '')}")
        return False
    right = row["prediction"]["label"] == "billing" and not missing
    network = "without a network" if offline else "network not cut off"
    print(f"{version}: {size / 1e6:.0f} MB, {network}: {'works' if right else f'wrong: {row}, missing {missing}'}")
    return right


def run(*command: str) -> str:
    """Return what a command prints; raise CalledProcessError where it fails."""
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def works(*command: str) -> bool:
    """Tell whether a command ends with 0."""
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    raise SystemExit(main())
