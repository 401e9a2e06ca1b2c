"""Write completion scripts and man pages from the application: run this after an option or a help text changed."""

from pathlib import Path

from gliclass_cli.cli.app import app
from gliclass_cli.cli.manual import man_pages
from gliclass_cli.cli.shells import COMPLETION_FILES, completion_script

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    for shell, name in COMPLETION_FILES.items():
        (ROOT / "completions" / name).write_text(completion_script(app, shell), "utf-8")
    for name, page in man_pages(app).items():
        (ROOT / "man" / name).write_text(page, "utf-8")
