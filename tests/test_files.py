"""Files: compression by content whatever the name, and results that are complete or not there."""

import bz2
import contextlib
import errno
import gzip
import io
import lzma
import os
import random
import stat
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliclass_cli.errors import GliclassError, InputUnusable, OutputFailed, UsageProblem
from gliclass_cli.files import Output, check_input, open_source, read_text_file
from gliclass_cli.readers import ReadOptions, read_rows
from gliclass_cli.streaming import Ahead

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
}
CHANCE = random.Random(0)
LINES = [b'{"id": %d, "text": "%s"}\n' % (number, CHANCE.randbytes(200).hex().encode()) for number in range(2000)]
DATA = b"".join(LINES)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files") / "scratch"


def content(data: bytes, path: Path) -> bytes:
    path.write_bytes(data)
    with open_source(str(path)) as source, source.reading():
        return source.stream.read()


# --- input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.jsonl.zst", "in"])
@pytest.mark.parametrize("kind", COMPRESS)
def test_compression_is_told_by_content_whatever_the_name(tmp_path: Path, kind: str, name: str) -> None:
    assert content(COMPRESS[kind](DATA), tmp_path / name) == DATA


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
def test_plain_data_is_plain_whatever_the_name(tmp_path: Path, name: str) -> None:
    assert content(DATA, tmp_path / name) == DATA


@pytest.mark.parametrize("kind", COMPRESS)
def test_members_one_after_another_are_one_input(scratch: Path, kind: str) -> None:
    compress = COMPRESS[kind]
    assert content(compress(b"a\n") + compress(b"") + compress(b"b\n"), scratch) == b"a\nb\n"


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_nothing_is_nothing(scratch: Path, kind: str) -> None:
    assert content(COMPRESS[kind](b""), scratch) == b""


@pytest.mark.parametrize(
    "data",
    [b"", b"\x1f", b"B", b"BZ", b"BZh", b"BZh9", b"\xfd", b"\xfd7zX", b"(", b"BZh is no bzip2\n", b"(\xb5/", b"\xef"],
)
def test_a_few_bytes_that_only_begin_like_compressed_data_are_data(scratch: Path, data: bytes) -> None:
    assert content(data, scratch) == data


@given(data=st.binary(max_size=100))
def test_any_bytes_come_back(scratch: Path, data: bytes) -> None:
    for compress in COMPRESS.values():
        assert content(compress(data), scratch) == data


@given(
    kind=st.sampled_from(list(COMPRESS)),
    cut=st.integers(0, 120),
    changes=st.dictionaries(st.integers(0, 119), st.integers(0, 255), max_size=3),
)
def test_any_damage_is_a_clean_error(scratch: Path, kind: str, cut: int, changes: dict[int, int]) -> None:
    data = bytearray(COMPRESS[kind](b'{"text": "some text, some text, some more"}\n' * 3))
    for place, byte in changes.items():
        data[place % len(data)] = byte
    with contextlib.suppress(GliclassError):
        content(bytes(data[:cut]), scratch)


@pytest.mark.parametrize("kind", COMPRESS)
def test_the_rows_before_a_cut_are_read_and_the_cut_is_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "in.jsonl"
    data = COMPRESS[kind](DATA)
    path.write_bytes(data[: len(data) // 2])
    raw: list[bytes] = []
    with (
        open_source(str(path)) as source,
        pytest.raises(InputUnusable, match=rf"in\.jsonl: .* damaged or cut off after {len(data) // 2} bytes"),
    ):
        for record in read_rows(source, ReadOptions()).records:
            assert record.error is None
            raw.append(record.raw)
    assert raw == LINES[: len(raw)]
    # bzip2 works in blocks of 900 kB: all of this is in the one that is cut.
    assert len(raw) > 500 or kind == "bz2"


@pytest.mark.parametrize("tail", [b"tail", b"\x1f\x8b\x08"])
def test_what_follows_a_gzip_file_is_never_dropped_silently(scratch: Path, tail: bytes) -> None:
    with pytest.raises(InputUnusable, match="damaged"):
        content(gzip.compress(DATA) + tail, scratch)
    assert content(gzip.compress(DATA) + b"\0" * 10, scratch) == DATA  # padding, of tapes and the like


def test_a_live_compressed_stream_gives_what_was_flushed() -> None:
    reading, writing = os.pipe()

    def lines() -> Iterator[bytes]:
        with open_source(f"/dev/fd/{reading}") as source:
            yield from source.stream

    ahead = Ahead(lines(), 10, "read")
    with open(writing, "wb", buffering=0) as pipe, gzip.GzipFile(fileobj=pipe, mode="wb") as packed:  # noqa: PTH123 - a descriptor
        for line in (b"a\n", b"b\n"):
            packed.write(line)
            packed.flush()
            assert ahead.take(5) == line
    with pytest.raises(StopIteration):
        ahead.take(5)
    os.close(reading)


def test_a_pipe_that_another_program_made_non_blocking_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    stdin = mock.Mock(**{"fileno.return_value": reading})

    def whole() -> Iterator[bytes]:
        with open_source("-") as source:
            yield source.stream.read()

    with mock.patch("sys.stdin", stdin):
        ahead = Ahead(whole(), 1, "read")
        for piece in (b"a\n", b"b\n"):
            with pytest.raises(TimeoutError):
                ahead.take(0.05)
            os.write(writing, piece)
        os.close(writing)
        assert ahead.take(5) == b"a\nb\n"
    os.close(reading)


@pytest.mark.parametrize("kind", [None, *COMPRESS])
def test_consumed_counts_the_bytes_of_the_file(scratch: Path, kind: str | None) -> None:
    data = COMPRESS[kind](DATA) if kind else DATA
    scratch.write_bytes(data)
    with open_source(str(scratch)) as source:
        assert (source.name, source.size, source.compressed) == (str(scratch), len(data), kind is not None)
        assert 0 < source.consumed() < len(data)
        source.stream.read()
        assert source.consumed() == len(data)


@pytest.mark.parametrize("kind", [None, *COMPRESS])
def test_the_file_is_closed_at_the_end_and_after_an_error(scratch: Path, kind: str | None) -> None:
    scratch.write_bytes(COMPRESS[kind](DATA) if kind else DATA)
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208 - descriptors come and go while pathlib looks at them
    with open_source(str(scratch)) as kept:
        pass
    with pytest.raises(ZeroDivisionError), open_source(str(scratch)) as kept_too:
        raise ZeroDivisionError
    assert kept.stream.closed
    assert kept_too.stream.closed
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208


def test_missing_and_unreadable_inputs_are_named(tmp_path: Path) -> None:
    (tmp_path / "tickets.jsonl").touch()
    with pytest.raises(InputUnusable, match=r"ticket\.jsonl: no such file; did you mean .*/tickets\.jsonl\?"):
        check_input(str(tmp_path / "ticket.jsonl"))
    with pytest.raises(InputUnusable, match=r"nothing/like/it: no such file$"):
        check_input(str(tmp_path / "nothing/like/it"))
    with pytest.raises(InputUnusable, match=r"is a directory; name its files, for example .*/\*\.jsonl"):
        check_input(str(tmp_path))
    with pytest.raises(InputUnusable, match="Not a directory"):
        check_input(str(tmp_path / "tickets.jsonl/x"))
    with pytest.raises(InputUnusable, match="File name too long"):
        check_input("x" * 5000)
    check_input("-")


def test_an_error_of_the_system_while_reading_is_clean() -> None:
    class Failing(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    stdin = mock.Mock(buffer=Failing(), **{"fileno.side_effect": io.UnsupportedOperation})
    with (
        mock.patch("sys.stdin", stdin),
        pytest.raises(InputUnusable, match="stdin: Input/output error"),
        open_source("-"),
    ):
        pass


def test_read_text_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(b"\xef\xbb\xbfa\xc3\xa9\r\n")
    assert read_text_file(str(path), "label file", UsageProblem) == "aé\r\n"
    path.write_bytes(b"a\nb\xff")
    with pytest.raises(UsageProblem, match=r"label file .*labels\.txt:2: not UTF-8 text \(byte 0xff\)"):
        read_text_file(str(path), "label file", UsageProblem)
    with pytest.raises(UsageProblem, match=r"label file .*: no such file; did you mean .*labels\.txt\?"):
        read_text_file(str(tmp_path / "label.txt"), "label file", UsageProblem)
    with pytest.raises(UsageProblem, match="Is a directory"):
        read_text_file(str(tmp_path), "label file", UsageProblem)


# --- output ----------------------------------------------------------------------------------------------------------


def write(path: Path, *pieces: bytes) -> None:
    output = Output(str(path))
    for piece in pieces:
        output.write(piece)
        output.flush()
    output.commit()


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    output = Output(str(path))
    output.write(b"a\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl.part"]
    output.commit()
    output.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]
    assert path.read_bytes() == b"a\n"


def test_without_commit_the_old_file_is_untouched_and_the_part_stays(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"old\n")
    output = Output(str(path))
    output.write(b"new\n")
    output.close()
    output.close()
    assert path.read_bytes() == b"old\n"
    assert output.part and output.part.read_bytes() == b"new\n"


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.jsonl.bz2", "out.csv.xz", "out.zst", "OUT.GZ"])
def test_compression_by_ending_comes_back_and_is_the_same_every_time(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(path, *LINES)
    first = path.read_bytes()
    assert (first == DATA) == (name == "out.jsonl")
    assert content(first, tmp_path / "copy") == DATA
    (tmp_path / "elsewhere").mkdir()
    with mock.patch("time.time", return_value=1e9):
        write(tmp_path / "elsewhere" / name, *LINES)
    assert (tmp_path / "elsewhere" / name).read_bytes() == first


def test_nothing_written_is_a_valid_file(tmp_path: Path) -> None:
    for name in ("out", "out.gz", "out.bz2", "out.xz", "out.zst"):
        write(tmp_path / name)
        assert content((tmp_path / name).read_bytes(), tmp_path / "copy") == b""


def test_a_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.touch()
    path.chmod(0o600)
    output = Output(str(path))
    assert output.part and stat.S_IMODE(output.part.stat().st_mode) == 0o600  # never readable for others
    output.commit()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_keeps_pointing(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    target, link = tmp_path / "data" / "real.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(target)
    for text in (b"first\n", b"second\n"):
        write(link, text)
        assert link.is_symlink()
        assert target.read_bytes() == text
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["real.jsonl"]


def test_the_input_may_be_the_output(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(DATA)
    output = Output(str(path))
    with open_source(str(path)) as source:
        for line in source.stream:
            output.write(b">" + line)
    output.commit()
    assert path.read_bytes() == b"".join(b">" + line for line in LINES)


def test_a_device_is_written_to_not_replaced() -> None:
    write(Path(os.devnull), b"a\n")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    assert not Path(f"{os.devnull}.part").exists()


@pytest.mark.parametrize("name", ["fifo", "fifo.part"])
def test_a_named_pipe_gets_each_piece_at_once(tmp_path: Path, name: str) -> None:
    fifo, link = tmp_path / name, tmp_path / "link.part"
    os.mkfifo(fifo)
    link.symlink_to(fifo)

    def lines() -> Iterator[bytes]:
        with fifo.open("rb") as pipe:
            yield from pipe

    ahead = Ahead(lines(), 10, "read")
    output = Output(str(link))
    for line in (b"a\n", b"b\n"):
        output.write(line)
        output.flush()
        assert ahead.take(5) == line
    output.commit()
    with pytest.raises(StopIteration):
        ahead.take(5)
    assert link.is_symlink()
    assert fifo.is_fifo()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_clean_error() -> None:
    output = Output("/dev/full")
    output.write(b"a")
    with pytest.raises(OutputFailed, match="/dev/full: cannot be written: no space left on the disk"):
        output.commit()
    output.close()
    output = Output("/dev/full")
    with pytest.raises(OutputFailed):
        output.write(DATA)
    output.close()


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".xz", ".zst"])
def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out{ending}"
    path.write_bytes(b"old")
    output = Output(str(path))
    output.write(b"a" * 10)
    with (
        mock.patch("os.fsync", side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
        pytest.raises(OutputFailed, match=rf"out{ending}\.part: cannot be written: no space left on the disk"),
    ):
        output.commit()
    output.close()
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "is a directory; name a file in it"),
        ("missing/out", "missing/out: there is no folder .*missing; make it first"),
        ("file/out", "file/out: "),
        ("x" * 254, "File name too long"),
        ("x" * 5000, "File name too long"),
        ("loop", "loop"),
    ],
)
def test_names_that_cannot_be_written(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputFailed, match=message):
        write(tmp_path / name, b"a")
    assert (tmp_path / "loop").is_symlink()


@pytest.mark.parametrize("name", [None, "-"])
def test_standard_output(name: str | None, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    output = Output(name)
    output.write(b"a\xff\n")
    output.commit()
    assert output.part is None
    assert capfdbinary.readouterr().out == b"a\xff\n"


def test_a_reader_that_went_away_is_left_to_the_caller(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: fifo.open("rb").close())
    reader.start()
    output = Output(str(fifo))
    reader.join()
    with pytest.raises(BrokenPipeError):
        output.write(DATA)
        output.flush()
    output.close()


# --- bombs, and what steers a terminal -------------------------------------------------------------------------------


def test_xz_that_asks_for_gigabytes_of_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.xz"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 1 << 29}]
    head = lzma.compress(b"small", format=lzma.FORMAT_XZ, filters=[{**filters[0], "dict_size": 1 << 20}])
    # The size of the dictionary is the byte after the filter's number and length; the header's checksum follows.
    header = bytearray(head[12 : 12 + (head[12] + 1) * 4])
    header[4] = 38  # 2 ** 31 bytes
    header[-4:] = zlib.crc32(header[:-4]).to_bytes(4, "little")
    path.write_bytes(head[:12] + header + head[12 + len(header) :])
    with pytest.raises(InputUnusable, match=r"bomb\.xz: needs more than 256 MiB to be decompressed"):
        read_all(path)
    assert read_all_of(lzma.compress(b"x" * 10_000_000, preset=9), tmp_path) == b"x" * 10_000_000


def read_all(path: Path) -> bytes:
    with open_source(str(path)) as source, source.reading():
        return source.stream.read()


def read_all_of(data: bytes, folder: Path) -> bytes:
    (folder / "data").write_bytes(data)
    return read_all(folder / "data")


def test_what_follows_an_xz_file_is_another_one_or_zeros(tmp_path: Path) -> None:
    one = lzma.compress(b"one")
    assert read_all_of(one + b"\0" * 8 + lzma.compress(b"two") + b"\0" * 4, tmp_path) == b"onetwo"
    with pytest.raises(InputUnusable, match="damaged or cut off"):
        read_all_of(one + b"junk", tmp_path)


def test_a_small_file_that_never_ends_is_refused() -> None:
    with pytest.raises(UsageProblem, match=r"label file /dev/zero: has more than 100,000,000 bytes"):
        read_text_file("/dev/zero", "label file", UsageProblem)


def test_only_a_terminal_gets_results_without_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "a\x1b]0;title\x07\tb\r\nc\rd\x9b31m\u202ec\u2066 é🙂".encode()
    for watched, expected in ((False, hostile), (True, "a ]0;title \tb\r\nc d 31m c  é🙂".encode())):
        stream = io.TextIOWrapper(io.BytesIO())
        monkeypatch.setattr(stream, "isatty", lambda watched=watched: watched)
        monkeypatch.setattr("sys.stdout", stream)
        Output(None).write(hostile)
        assert stream.buffer.getvalue() == expected  # type: ignore[attr-defined]
