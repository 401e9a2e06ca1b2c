"""Entry point of the command ``gliclass`` and of ``python -m gliclass_cli``."""

import sys


def main() -> None:
    """Run the command line; answer ``--version`` before anything is imported."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        from gliclass_cli import __version__

        sys.stdout.write(f"gliclass {__version__}\n")
        return
    from gliclass_cli.cli.app import run

    run()


if __name__ == "__main__":
    main()
