"""Inputs that were damaged, or made to harm: each ends in a result or in a clean error, never in anything else."""

import os
import random
import signal
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import fuzz  # noqa: E402

KEPT = [(name, path) for name in fuzz.TARGETS for path in fuzz.corpus(name)]


def test_every_kept_case_has_a_target() -> None:
    assert {path.name for path in fuzz.CORPUS.iterdir()} <= fuzz.TARGETS.keys()


@pytest.mark.parametrize(("name", "path"), KEPT, ids=[f"{name}-{path.name}" for name, path in KEPT])
def test_a_kept_case_does_no_harm(name: str, path: Path, tmp_path: Path) -> None:
    assert fuzz.run_case(name, path.read_bytes(), tmp_path) == ""


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_some_damaged_inputs_of_each_target(name: str, tmp_path: Path) -> None:
    for data in fuzz.cases(name, 15, seed=1):
        assert fuzz.run_case(name, data, tmp_path) == "", data


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_sound_inputs_are_read(name: str, tmp_path: Path) -> None:
    seeds, check, _ = fuzz.TARGETS[name]
    for data in seeds or [fuzz.GRAPH.read_bytes()]:
        check(data, tmp_path)  # raises nothing


def test_the_same_seed_gives_the_same_cases() -> None:
    assert list(fuzz.cases("csv", 20, 3)) == list(fuzz.cases("csv", 20, 3)) != list(fuzz.cases("csv", 20, 4))


def test_the_fuzzer_sees_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(data: bytes, folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fail(data: bytes, folder: Path) -> None:
        raise KeyError("text")

    def hang(data: bytes, folder: Path) -> None:
        while True:
            pass

    monkeypatch.setattr(fuzz, "SECONDS", 1)
    assert "status" in fuzz.attempt_apart(die, b"", tmp_path)
    assert "KeyError" in fuzz.attempt_apart(fail, b"", tmp_path)
    assert "Slow" in fuzz.attempt(hang, b"", tmp_path)


def test_damage_changes_what_it_is_given() -> None:
    draw = random.Random(0)
    changed = [fuzz.mutate(fuzz.CSV, [fuzz.CSV], draw) for _ in range(100)]
    assert sum(data != fuzz.CSV for data in changed) > 90
