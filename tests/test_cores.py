"""Cores: the quotas of control groups, version 1 and 2, in fake trees."""

import os
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliclass_cli.cores import available_cores

V1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


@pytest.fixture(autouse=True)
def many_cores() -> object:
    with mock.patch("os.sched_getaffinity", return_value=set(range(16)), create=True) as patched:
        yield patched


def cores(tmp_path: Path, membership: str | bytes, quotas: dict[str, str]) -> int:
    """The cores found in a tree of control groups: ``quotas`` maps a file to what it holds."""
    for name, value in quotas.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value)
    member = tmp_path / "self"
    member.write_bytes(membership if isinstance(membership, bytes) else membership.encode())
    return available_cores(tmp_path / "cgroup", member)


def v1(folder: str, quota: str, period: str = "100000\n") -> dict[str, str]:
    return {f"{folder}/{V1[0]}": quota, f"{folder}/{V1[1]}": period}


@pytest.mark.parametrize(
    ("membership", "quotas", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "1000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 16),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "300000 100000\n"}, 2),
        # In a container the path is often that of the host, and not there.
        ("0::/docker/0123\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/../outside\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/a:b\n", {"a:b/cpu.max": "200000 100000\n"}, 2),
        ("5:cpu,cpuacct:/x\n1:name=systemd:/y\n", v1("cpu,cpuacct/x", "250000\n"), 3),
        ("5:cpu,cpuacct:/docker/0123\n", v1("cpu,cpuacct", "200000\n"), 2),
        ("5:cpu:/x/y\n", v1("cpu/x/y", "-1\n") | v1("cpu/x", "200000\n"), 2),
        ("5:cpu:/x\n0::/x\n", v1("cpu/x", "-1\n"), 16),
        ("0::/\n", {"cpu.max": "0 100000"}, 1),
        ("0::/\n", {"cpu.max": "200000 0"}, 16),
        ("0::/\n", {"cpu.max": "nonsense"}, 16),
        ("0::/\n", {"cpu.max": ""}, 16),
        ("0::/\n", {"cpu.max": "9" * 400 + " 1"}, 16),
        ("0::/\n", {}, 16),
        ("", {"cpu.max": "200000 100000\n"}, 16),
        ("nonsense\n", {}, 16),
    ],
)
def test_the_smallest_quota_counts(tmp_path: Path, membership: str, quotas: dict[str, str], expected: int) -> None:
    assert cores(tmp_path, membership, quotas) == expected


def test_affinity_counts_too(tmp_path: Path, many_cores: mock.Mock) -> None:
    many_cores.return_value = {3}
    assert cores(tmp_path, "0::/\n", {"cpu.max": "400000 100000\n"}) == 1


def test_without_control_groups_or_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_cores(tmp_path / "none", tmp_path / "none") == 16
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path / "none", tmp_path / "none") == 1


def test_names_that_are_no_text(tmp_path: Path) -> None:
    assert cores(tmp_path, b"0::/caf\xe9\n", {"cpu.max": "200000 100000\n"}) == 2


@given(
    membership=st.binary(max_size=30) | st.text("0:cpu/.,\n ").map(str.encode),
    value=st.binary(max_size=20) | st.text("0123456789 -max.\n").map(str.encode),
)
def test_any_content_gives_a_number_of_cores(
    tmp_path_factory: pytest.TempPathFactory, membership: bytes, value: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-cores"
    folder.mkdir(exist_ok=True)
    for name in ("cpu.max", "member", *V1):
        (folder / name).write_bytes(membership if name == "member" else value)
    assert 1 <= available_cores(folder, folder / "member") <= 16
    (folder / "cpu.max").unlink()
    assert 1 <= available_cores(folder, folder / "member") <= 16
