"""Write completion scripts and man pages from the application: run this after an option or a help text changed."""

from pathlib import Path

from gliclass_cli.cli.app import app
from gliclass_cli.cli.reference import write_reference

if __name__ == "__main__":
    write_reference(app, Path(__file__).parents[1])
