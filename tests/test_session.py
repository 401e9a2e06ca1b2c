"""``gliclass tag -`` on a terminal: texts and commands."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from gliclass_cli import Classifier
from gliclass_cli.cli.app import app
from gliclass_cli.cli.session import Session
from gliclass_cli.labels import make_labels, parse_labels
from gliclass_cli.predictions import Choice, Prediction
from gliclass_cli.prompts import Reading


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier.load(reading=Reading(max_length=64, long="error"))


@pytest.fixture
def shown() -> list[Prediction]:
    return []


@pytest.fixture
def session(classifier: Classifier, shown: list[Prediction]) -> Session:
    return Session(classifier, make_labels(["billing", "shipping"]), Choice(), shown.append)


def test_a_text_is_answered(session: Session, shown: list[Prediction]) -> None:
    assert session.take("I was charged twice")
    assert session.take("  :) ")
    assert session.take("")
    assert [list(prediction.scores or ()) for prediction in shown] == [["billing", "shipping"]] * 2
    assert shown[0].label == "billing"


def test_labels_are_edited(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    for line, labels in (
        (":add praise, 配送", "billing, shipping, praise, 配送"),
        (":drop shipping,praise", "billing, 配送"),
        (":labels a,, b ", "a, b"),
        (":labels", "a, b"),
        (":drop a, b", "none yet; for example :labels billing, shipping"),
        (":add c", "c"),
    ):
        assert session.take(line)
        assert capsys.readouterr() == (f"labels: {labels}\n", "")


def test_descriptions_and_hierarchies_stay(classifier: Classifier) -> None:
    labels = parse_labels({"topic": {"money": "invoices", "parcels": None}, "praise": None})
    session = Session(classifier, labels, Choice(), lambda prediction: None)
    session.take(":add other")
    session.take(":drop praise")
    assert session.labels is not None
    assert session.labels.paths == (("topic", "money"), ("topic", "parcels"), ("other",))
    assert session.labels.descriptions == ("invoices", None, None)


def test_the_choice_is_changed(session: Session, shown: list[Prediction]) -> None:
    for line in (":multi", ":threshold 0", "hello", ":threshold 1", "hello", ":threshold", ":multi", "hello"):
        assert session.take(line)
    assert [len(prediction.labels) for prediction in shown] == [2, 0, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (":dorp x", "no command :dorp; did you mean :drop?"),
        (":zzz", "no command :zzz; :help shows them"),
        (":add billing", "label 'billing' is given twice; remove one"),
        (":add", "no labels"),
        (":drop x", "'x' is not one of the labels: billing, shipping"),
        (":threshold 2", ":threshold 2: must be a number from 0 to 1"),
        (":threshold x", ":threshold x: must be a number from 0 to 1"),
        (":labels a, " + "word " * 600, "labels are never cut"),
        ("word " * 100, "the text is too long: 102 tokens"),
    ],
)
def test_what_is_wrong_is_told_and_changes_nothing(
    session: Session, shown: list[Prediction], capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    assert session.take(line)
    assert message in capsys.readouterr().err
    assert session.labels == make_labels(["billing", "shipping"])
    assert not shown


def test_without_labels_they_are_asked_for(classifier: Classifier, capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(classifier, None, Choice(), lambda prediction: None)
    session.take("hello")
    assert "no labels: give them first" in capsys.readouterr().err


def test_the_end(session: Session) -> None:
    assert not session.take(":quit")
    assert not session.take(" :q ")


def test_a_minus_in_a_pipe_is_standard_input() -> None:
    arguments = ["tag", "-l", "billing", "-l", "shipping"]
    with_minus = CliRunner().invoke(app, [*arguments, "-"], input="charged\n:quit\n")
    assert with_minus.exit_code == 0
    assert len(with_minus.stdout.splitlines()) == 2
    assert with_minus.stdout == CliRunner().invoke(app, arguments, input="charged\n:quit\n").stdout


class Terminal:
    """A session in a process of its own, on a terminal."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        env = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
        command = [sys.executable, "-m", "gliclass_cli", "tag", "-", *arguments]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True
        )
        os.close(slave)
        self.seen = ""

    def wait_for(self, text: str) -> None:
        """Read until a text is on the screen; forget what came before."""
        end = time.monotonic() + 60
        while text not in self.seen and time.monotonic() < end:
            if select.select([self.master], [], [], 0.2)[0]:
                self.seen += os.read(self.master, 65536).decode("utf-8", "replace")
        assert text in self.seen
        self.seen = self.seen.split(text, 1)[1]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


def test_a_session_on_a_terminal() -> None:
    terminal = Terminal()
    terminal.wait_for("labels: none yet")
    terminal.wait_for("> ")
    terminal.type(":labels billing, shipping\n")
    terminal.wait_for("labels: billing, shipping")
    terminal.wait_for("> ")
    terminal.type("I was charged twice\n")
    terminal.wait_for("  billing   ")
    terminal.wait_for("> ")
    terminal.type("never mind")
    terminal.wait_for("never mind")
    os.kill(terminal.process.pid, signal.SIGINT)
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.process.wait(30) == 0
    os.close(terminal.master)
