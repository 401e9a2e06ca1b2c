"""``gliclass tag -`` on a terminal: texts and commands, a line each."""

import contextlib
import difflib
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import typer

from gliclass_cli.classifier import Classifier
from gliclass_cli.cli.terminal import clean, say
from gliclass_cli.errors import GliclassError
from gliclass_cli.labels import LabelProblem, LabelSet, combine, make_labels, without
from gliclass_cli.predictions import Choice, Prediction

PROMPT = "> "
_COMMAND = re.compile(r":([a-z]+)(?:\s+(.*))?", re.DOTALL)
_HELP = """Type a text to label it, or a command:
  :labels a, b, c   choose from these labels; without labels: show them
  :add a, b         add labels
  :drop a, b        drop labels
  :multi            switch between one label a text and any number of labels
  :threshold 0.6    the score that a label must reach; without a number: the usual one
  :help             show this
  :quit             leave; Ctrl-D too"""


class Session:
    """What is asked about the next text; commands change it."""

    def __init__(
        self,
        classifier: Classifier,
        labels: LabelSet | None,
        choice: Choice,
        show: Callable[[Prediction], None],
    ) -> None:
        self.labels = labels
        self.choice = choice
        self._classifier = classifier
        self._show = show
        self._commands: dict[str, Callable[[str], None]] = {
            "labels": self._set_labels,
            "add": self._add,
            "drop": self._drop,
            "multi": self._multi,
            "threshold": self._threshold,
            "help": lambda _: typer.echo(_HELP),
        }

    def run(self) -> None:
        """Read lines from a terminal until its user leaves."""
        _use_readline((*self._commands, "quit"))
        typer.echo("Type a text; :help shows the commands, :quit leaves.")
        self._tell()
        with _interrupts():
            while (line := _read_line()) is not None:
                try:
                    if not self.take(line):
                        return
                except KeyboardInterrupt:
                    typer.echo()

    def take(self, line: str) -> bool:
        """Answer a line; False where it asks to leave. What is wrong with it is told on stderr."""
        text = line.strip()
        command = _COMMAND.fullmatch(text)
        try:
            if command is None:
                self._answer(text)
            elif command[1] in ("quit", "q", "exit"):
                return False
            else:
                self._command(command[1], (command[2] or "").strip())
        except (GliclassError, LabelProblem, ValueError) as error:
            say(str(error))
        return True

    def _command(self, name: str, rest: str) -> None:
        if name not in self._commands:
            near = difflib.get_close_matches(name, self._commands, n=1)
            say(f"no command :{name}; " + (f"did you mean :{near[0]}?" if near else ":help shows them"))
            return
        self._commands[name](rest)

    def _answer(self, text: str) -> None:
        if not text:
            return
        if self.labels is None:
            say("no labels: give them first, for example :labels billing, shipping, praise")
            return
        [prediction] = self._classifier.predict([text], self.labels, self.choice)
        self._show(prediction)

    def _set_labels(self, rest: str) -> None:
        if rest:
            self._use(make_labels(_split(rest)))
        self._tell()

    def _add(self, rest: str) -> None:
        new = make_labels(_split(rest))
        self._use(new if self.labels is None else combine([self.labels, new]))
        self._tell()

    def _drop(self, rest: str) -> None:
        if self.labels is not None:
            self.labels = without(self.labels, _split(rest))
        self._tell()

    def _use(self, labels: LabelSet) -> None:
        """Take labels, unless the model cannot. Raises LabelProblem, UsageProblem."""
        self._classifier.check_labels(labels)
        self.labels = labels

    def _multi(self, rest: str) -> None:
        self.choice = replace(self.choice, multi=not self.choice.multi)
        typer.echo("any number of labels a text" if self.choice.multi else "one label a text")

    def _threshold(self, rest: str) -> None:
        try:
            threshold = float(rest) if rest else None
        except ValueError:
            threshold = -1.0
        if threshold is not None and not 0 <= threshold <= 1:
            say(f":threshold {rest}: must be a number from 0 to 1")
            return
        self.choice = replace(self.choice, threshold=threshold)

    def _tell(self) -> None:
        from gliclass_cli.writers import printable

        names = ", ".join(self.labels.names) if self.labels else "none yet; for example :labels billing, shipping"
        typer.echo(f"labels: {printable(names)}")


def _split(rest: str) -> list[str]:
    return [name.strip() for name in rest.split(",") if name.strip()]


def _read_line() -> str | None:
    """Return the next line, "" where it was given up with Ctrl-C or is not text; None at the end."""
    try:
        return clean(input(PROMPT))
    except EOFError:
        typer.echo()
        return None
    except KeyboardInterrupt:
        typer.echo()
    except UnicodeDecodeError:
        say(f"not {sys.stdin.encoding} text")
    return ""


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """Let Ctrl-C give up the line that is being typed, not the session."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _use_readline(commands: tuple[str, ...]) -> None:
    """Edit lines with the keys of the shell and complete commands, where Python has readline; nothing is saved."""
    try:
        import readline
    except ImportError:
        return
    words = [f":{name}" for name in commands]

    def complete(text: str, state: int) -> str | None:
        found = [word for word in words if text.startswith(":") and word.startswith(text)]
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
