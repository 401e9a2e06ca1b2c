"""Defaults of options from the configuration file, and which of them win."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gliclass_cli.cli.app import app
from gliclass_cli.cli.config import config_path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, which is not there yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "gliclass").mkdir()
    return tmp_path / "gliclass" / "config.toml"


def gliclass(*arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin, env=env, catch_exceptions=False)


def prediction(*arguments: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    result = gliclass(*arguments, stdin="charged twice", env=env)
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout)["prediction"])


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/a")
    assert config_path() == Path("/a/gliclass/config.toml")
    monkeypatch.setenv("HOME", "/home/x")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", value)
        assert config_path() == Path("/home/x/.config/gliclass/config.toml")


def test_the_command_line_comes_before_the_environment_and_that_before_the_file(home: Path) -> None:
    home.write_text('[classify]\nlabel = ["one thing", "b"]\ndigits = 1\ntop-k = 1\nquiet = true\n')
    found = prediction("classify")
    assert list(found["scores"].values()) == [round(found["score"], 1)]
    environment = {"GLICLASS_LABEL": "x\ny z\nw", "GLICLASS_TOP_K": "3"}
    assert sorted(prediction("classify", env=environment)["scores"]) == ["w", "x", "y z"]
    assert sorted(prediction("classify", "-l", "p", "-l", "q", "--top-k", "2", env=environment)["scores"]) == ["p", "q"]


def test_a_commands_own_table_comes_before_that_of_all(home: Path) -> None:
    home.write_text('[defaults]\ntop_k = 1\nlabel = ["a", "b", "c"]\n[tag]\ntop_k = 2\n')
    assert len(prediction("classify")["scores"]) == 1
    assert len(prediction("tag")["scores"]) == 2


def test_a_switch_can_be_turned_off_in_the_environment(home: Path) -> None:
    home.write_text('[classify]\nmulti = true\nthreshold = 0\nlabel = ["a", "b"]\n')
    assert len(prediction("classify")["labels"]) == 2
    assert len(prediction("classify", env={"GLICLASS_MULTI": "0"})["labels"]) == 1


def test_tables_of_commands_below_commands(home: Path) -> None:
    home.write_text("[models.info]\njson = true\n")
    assert json.loads(gliclass("models", "info").stdout)["name"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[classify]\nlabell = 'a'", "[classify] labell: there is no such option of classify; did you mean label?"),
        ("[clasify]\nlabel = 'a'", "[clasify]: there is no such command; did you mean classify?"),
        ("[models.inf]\njson = true", "[models.inf]: there is no such command; did you mean models.info?"),
        ("[models]\njson = true", "models.json: an option stands in the table of a command, or in [defaults]"),
        ("threads = 4", "threads: an option stands in the table of a command, or in [defaults]"),
        ("[defaults]\nthread = 4", "[defaults] thread: there is no such option of any command; did you mean threads?"),
        ("classify = 4", "classify: a table belongs here: [classify], and its options below it"),
        ("[classify]\nthreads = 'x'", "[classify] threads: 'x' is not a valid int"),
        ("[classify]\nthreads = 0", "[classify] threads: 0 is not in the range"),
        ("[defaults]\nthreads = 0", "[defaults] threads: 0 is not in the range"),
        ("[classify]\nmulti = 'yes'", "[classify] multi: must be true or false, not 'yes'"),
        ("[classify]\nlabel = [1]", "[classify] label: must be a text, or a list of texts, not [1]"),
        ("[classify]\nlabels = true", "[classify] labels: must be a text or a number, not True"),
        ("[classify]\non-error = 'x'", "[classify] on-error: 'x' is not one of"),
        ("[classify]\ninputs = 'x'", "[classify] inputs: there is no such option of classify"),
        ("[classify", "not TOML: "),
        ("\xff", "not TOML: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_file(home: Path, text: str, message: str) -> None:
    home.write_bytes(text.encode("latin-1"))
    result = gliclass("tag", "x", "-l", "a", "-l", "b")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"gliclass: {home}: {message}")
    assert gliclass("--help").exit_code == gliclass("tag", "--help").exit_code == 0


def test_doctor_shows_what_is_set(home: Path) -> None:
    assert json.loads(gliclass("doctor", "--json").stdout)["config_file"] == f"{home} (not there)"
    home.write_text("[defaults]\nthreads = 1\n[classify]\nmulti = true\n")
    environment = {"GLICLASS_TREADS": "2", "GLICLASS_DEBUG": "0", "GLICLASS_DIGITS": "3"}
    report = json.loads(gliclass("doctor", "--json", env=environment).stdout)
    assert report["config"] == {"defaults.threads": 1, "classify.multi": True}
    assert report["environment"] == dict(sorted(environment.items()))
    assert report["unknown_variables"] == {"GLICLASS_TREADS": "no option has it; did you mean GLICLASS_THREADS?"}
    assert report["ready"]
    plain = gliclass("doctor", env=environment).stdout
    assert "defaults.threads = 1, classify.multi = true\n" in plain
    home.write_text("[classify]\nx = 1\n")
    broken = gliclass("doctor", "--json")
    assert broken.exit_code == 4
    assert "[classify] x: there is no such option" in json.loads(broken.stdout)["problem"]


def test_a_file_that_cannot_be_read_is_told(home: Path) -> None:
    home.mkdir()
    result = gliclass("tag", "x", "-l", "a", "-l", "b")
    assert (result.exit_code, result.stderr) == (2, f"gliclass: {home}: Is a directory; mend or remove it\n")
