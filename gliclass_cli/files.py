"""Opening what is read and written: compression by content, ``-`` for the standard streams, whole files or none."""

import bz2
import codecs
import contextlib
import difflib
import fcntl
import gzip
import io
import lzma
import os
import re
import select
import stat
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, cast

from gliclass_cli.errors import InputUnusable, OutputFailed

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STDIN = "-"
# Names of standard output: it is written to as it is, never replaced.
_STDOUT = (STDIN, "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
# A text may begin with "BZh": bzip2 is told by its level and its first block, or the end of an empty file.
_BZIP2 = [b"BZh%d%s" % (level, block) for level in range(1, 10) for block in (b"1AY&SY", b"\x17rE8P\x90")]
PARQUET_MAGIC = b"PAR1\x15"  # with the first byte of a page
_MAGIC = {b"\x1f\x8b": "gz", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zst", **dict.fromkeys(_BZIP2, "bz2")}
# What the first bytes may tell; one of these in the making is read to its end before it is looked at.
_TELLING = (
    *_MAGIC,
    PARQUET_MAGIC,
    codecs.BOM_UTF8 + b"{",
    codecs.BOM_UTF16_BE,
    codecs.BOM_UTF32_BE,
    codecs.BOM_UTF32_LE,
)
_HEAD = 1 << 16
# Control characters but tabs and line ends, those of the second block and directions of writing too, in UTF-8.
_STEERING = re.compile(
    rb"\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\x8e\x8f\xaa-\xae]|\xe2\x81[\xa6-\xa9]"
)
_LARGEST_TEXT = 100_000_000  # bytes of a file of labels, examples or settings
_MOST_XZ_MEMORY = 1 << 28  # xz -9 takes a quarter of it; a file may ask for 4 GB
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zstd.ZstdError)


class _Replay(io.RawIOBase):
    """A raw stream that gives back the head that was read to look at it, then goes on."""

    def __init__(self, head: bytes, raw: Any) -> None:
        self._head = memoryview(head)
        self._raw = raw
        self.consumed = len(head)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._head:
            count = min(len(buffer), len(self._head))
            buffer[:count] = self._head[:count]
            self._head = self._head[count:]
            return count
        data = _read_some(self._raw, len(buffer))
        buffer[: len(data)] = data
        self.consumed += len(data)
        return len(data)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Inflated(io.RawIOBase):
    """A raw stream of what a decompressor gives, as it comes: nothing before a damaged place is lost."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _XzFile:
    """Decompresses xz with a bound on its memory; what follows a file must be another one, or zeros."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._decoder = lzma.LZMADecompressor(memlimit=_MOST_XZ_MEMORY)

    def read1(self, size: int) -> bytes:
        """Return some bytes, at most ``size``; none at the end. Raises EOFError, lzma.LZMAError."""
        while True:
            data = b""
            if self._decoder.eof:
                data = self._decoder.unused_data.lstrip(b"\0")
                while not data and (more := _read_some(self._raw, _HEAD)):
                    data = more.lstrip(b"\0")
                if not data:
                    return b""
                self._decoder = lzma.LZMADecompressor(memlimit=_MOST_XZ_MEMORY)
            elif self._decoder.needs_input and not (data := _read_some(self._raw, _HEAD)):
                raise EOFError("the file ended before the end of its data")
            if found := self._decoder.decompress(data, size):
                return found

    def close(self) -> None:
        """Do nothing: the raw stream is closed by who opened it."""


@dataclass(slots=True)
class Source:
    """An opened input: its name as the user gave it, the decompressed bytes, and how far the file has been read.

    ``path`` is there where the bytes lie in a plain file as they are, to be read at any place.
    """

    name: str
    stream: "io.BufferedReader[Any]"
    compressed: bool
    size: int | None
    path: str | None = field(default=None, kw_only=True)
    start: int = field(default=0, kw_only=True)  # bytes of the inputs before this one
    _replay: _Replay = field(repr=False)

    def consumed(self) -> int:
        """Return how many bytes of the file itself have been read, compressed or not."""
        return self._replay.consumed

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what can go wrong while reading into InputUnusable."""
        try:
            yield
        except _DAMAGE as error:
            raise self._damaged(error) from error
        except OSError as error:
            if error.errno is None:  # not from the system: from bz2
                raise self._damaged(error) from error
            raise InputUnusable(f"{self.name}: cannot be read on: {_reason(error)}") from error

    def _damaged(self, error: Exception) -> InputUnusable:
        if "Memory usage limit" in str(error):
            return InputUnusable(f"{self.name}: needs more than {_MOST_XZ_MEMORY >> 20} MiB to be decompressed")
        return InputUnusable(
            f"{self.name}: the compressed data is damaged or cut off after {self.consumed()} bytes ({error})"
        )


def check_input(name: str) -> None:
    """Raise InputUnusable for a name that is missing or a directory, before any work is done."""
    if name == STDIN or is_url(name):
        return
    path = Path(name)
    try:
        if not name:
            raise InputUnusable("the name of an input is empty")
        if path.is_dir():
            raise InputUnusable(f"{name}: is a directory; name its files, for example {path}/*.jsonl")
        path.stat()
    except OSError as error:
        raise InputUnusable(f"{name}: {_reason(error)}{_similar(path)}") from error


@contextlib.contextmanager
def open_source(name: str) -> Iterator[Source]:
    """Open a file, ``-`` or a URL; gz, bz2, xz and zst are recognised by their first bytes and decompressed.

    Raises:
        InputUnusable: it cannot be opened.
    """
    check_input(name)
    with contextlib.ExitStack() as opened:
        try:
            raw = _open_url(name) if is_url(name) else _open_stdin() if name == STDIN else io.FileIO(name)
            opened.callback(raw.close)
            head = _read_head(raw)
            size = os.fstat(raw.fileno()).st_size or None if isinstance(raw, io.FileIO) else None
        except OSError as error:
            raise InputUnusable(f"{_shown(name)}: {_reason(error)}") from error
        replay = opened.enter_context(_Replay(head, raw))
        kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
        data = _Inflated(_decompress(kind, replay)) if kind else replay
        stream = opened.enter_context(io.BufferedReader(data, _HEAD))
        plain = kind is None and name != STDIN and Path(name).is_file()
        yield Source(_shown(name), stream, kind is not None, size, replay, path=name if plain else None)


def read_text_file(name: str, what: str, problem: type[Exception]) -> str:
    """Return a small text file (UTF-8, a byte order mark is dropped); raises ``problem`` with a full message."""
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if name == STDIN else Path(name).open("rb") as file:
            data = file.read(_LARGEST_TEXT + 1)
        if len(data) > _LARGEST_TEXT:
            raise problem(f"{what} {name}: has more than {_LARGEST_TEXT:,} bytes; is it the right file?")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise problem(f"{what} {name}: {_reason(error)}{_similar(Path(name))}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise problem(f"{what} {name}:{line}: not UTF-8 text (byte {error.object[error.start]:#04x})") from error


class Output:
    """Where results go: standard output, or a file that is complete or does not exist.

    A file is written as ``FILE.part`` and renamed by ``commit``; ``.gz``, ``.bz2``, ``.xz`` and ``.zst`` are
    compressed by their ending. Without ``commit`` the part stays, with all that was written. As a context it
    commits at the end, or closes where an exception passes; a part in which nothing was written goes then.
    """

    def __init__(self, name: str | None, *, keep: bool = False) -> None:
        """Open ``name``; None and ``-`` are standard output. ``keep`` a part that is there until ``cut``.

        Raises:
            OutputFailed: it cannot be written.
        """
        self.part: Path | None = None  # where a file grows; None for standard output, a device or a pipe
        self.wrote = False
        self._is_stdout = name is None or name in _STDOUT
        self._shown = "standard output" if name is None or self._is_stdout else name
        self._special = self._is_stdout
        self._ending = ""
        self._watched = self._special and sys.stdout.isatty()
        self._file: BinaryIO
        self._stream: IO[bytes] | None = None  # compresses; opened when there is something to write
        if name is None or name in _STDOUT:
            self._file = sys.stdout.buffer
            return
        path = Path(name)
        with self._writing():
            if path.is_dir():
                raise OutputFailed(f"{name}: is a directory; name a file in it")
            if not path.absolute().parent.is_dir():
                raise OutputFailed(f"{name}: there is no folder {path.parent}; make it first")
            # A device or a pipe (/dev/null, /dev/fd/63) is written to, never replaced; a link keeps pointing.
            with contextlib.suppress(FileNotFoundError):
                self._special = not stat.S_ISREG(path.stat().st_mode)
            self._target = path.resolve()
            if self._special:
                self._file = path.open("wb")
                return
            self.part = part_of(name)
            self._file = _open_alone(self.part)
            self._ending = path.suffix.lower()
            if keep:
                self.wrote = self._file.seek(0, os.SEEK_END) > 0
            else:
                self.cut(0)
            if path.is_file():  # it keeps its permissions
                self.part.chmod(stat.S_IMODE(path.stat().st_mode))

    @property
    def compressed(self) -> bool:
        """Whether the file is compressed."""
        return self._ending in COMPRESSED_SUFFIXES

    def __enter__(self) -> "Output":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.commit()
            return
        with contextlib.suppress(OSError, OutputFailed):  # the first error is the one to tell
            self.close()
            if self.part and not self.wrote:
                self.part.unlink()

    def cut(self, size: int) -> None:
        """Keep the first ``size`` bytes of the part and write on behind them. Raises OutputFailed: there are fewer."""
        with self._writing():
            there = self._file.seek(0, os.SEEK_END)
            if there < size:
                raise OutputFailed(f"{self.part}: holds {there:,} bytes, and held {size:,}: it was changed; remove it")
            self._file.seek(size)
            self._file.truncate()
        self.wrote = size > 0

    def write(self, data: bytes) -> None:
        """Write bytes; on a terminal without what could steer it.

        Raises:
            OutputFailed: they cannot be written.
            BrokenPipeError: the reader of standard output went away.
        """
        if data:
            self.wrote = True
            shown = _STEERING.sub(b" ", data) if self._watched else data
            with self._writing():
                self._opened().write(shown)

    def flush(self) -> None:
        """Hand on what is written: on standard output, or a pipe, a reader sees it now."""
        if self._special:
            with self._writing():
                self._file.flush()

    def end_member(self) -> int:
        """End the compressed data, so that it can be read without what follows; return the bytes of the part so far."""
        with self._writing():
            self._end_stream()
            return self._file.tell()

    def sync(self) -> None:
        """Put on the disk what is in the part."""
        with self._writing():
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self) -> int:
        """Make the part what the file will be, on the disk; return its bytes."""
        with self._writing():
            if self.compressed and not self._file.tell():
                self._opened()  # compressed nothing is not nothing
        size = self.end_member()
        self.sync()
        return size

    def commit(self) -> None:
        """Finish: the file appears under its name, in one step, with all its bytes on the disk."""
        if self.part is None:
            self.close()
            return
        with self._writing(), self._file:  # closing lets the lock go: not before the file has its name
            self.finish()
            self.part.replace(self._target)

    def close(self) -> None:
        """Write all that is buffered, without renaming."""
        if self._is_stdout:
            self.flush()
            return
        if self._file.closed:
            return
        with self._writing(), self._file:
            self._end_stream()
            if self.part is not None:
                self.sync()

    def _opened(self) -> IO[bytes]:
        """Return the stream that is written to."""
        self._stream = self._stream or _compress(self._ending, self._file)
        return self._stream

    def _end_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None and stream is not self._file:
            stream.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
            reason = _reason(error) if isinstance(error, OSError) else str(error)
            raise OutputFailed(f"{self.part or self._shown}: cannot be written: {reason}") from error


def part_of(name: str) -> Path:
    """Return where the work of an output file goes until it is complete."""
    target = Path(name).resolve()
    return target.with_name(target.name + ".part")


def _open_alone(part: Path) -> BinaryIO:
    """Open a part for this process alone, as it is. Raises OutputFailed where another run writes it."""
    while True:
        file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), part.stat()):
                    return file
            file.close()  # another run gave it its name between the two steps
        except BlockingIOError as error:
            file.close()
            raise OutputFailed(f"{part}: another run is writing it; wait for it, or name another file") from error
        except OSError:
            file.close()
            raise


def is_url(name: str) -> bool:
    """Tell whether a name is that of a bucket's file or the like: ``s3://bucket/rows.jsonl``."""
    return re.match(r"[a-z][a-z0-9+.-]*://", name) is not None


def _open_url(name: str) -> Any:
    """Open a file of a bucket. Raises InputUnusable, OSError."""
    import fsspec

    try:
        return fsspec.open(name, "rb").open()
    except (ImportError, ValueError) as error:  # no library for it, no such protocol
        raise InputUnusable(f"{name}: {error}") from error


def _open_stdin() -> io.FileIO | BinaryIO:
    """Return standard input as its file descriptor: no lock of sys.stdin is held while a thread waits for input."""
    try:
        return io.FileIO(sys.stdin.fileno(), closefd=False)
    except io.UnsupportedOperation:  # a caller put a stream without descriptor in its place
        return sys.stdin.buffer


def _read_head(raw: Any) -> bytes:
    """Read until the first bytes tell what the data is: one read, unless it is very short."""
    head = more = _read_some(raw, _HEAD)
    while more and any(magic.startswith(head) and magic != head for magic in _TELLING):
        more = _read_some(raw, _HEAD)
        head += more
    return head


def _read_some(raw: Any, size: int) -> bytes:
    """Read what is there; empty only at the end, also where another program made the pipe non-blocking."""
    while (data := raw.read(size)) is None:
        select.select([raw], [], [])
    return bytes(data)


def _decompress(kind: str, raw: io.RawIOBase) -> Any:
    if kind == "gz":
        return gzip.GzipFile(fileobj=raw, mode="rb")
    if kind == "bz2":
        return bz2.BZ2File(cast(IO[bytes], raw))
    if kind == "xz":
        return _XzFile(raw)
    return zstd.ZstdFile(cast(Any, raw))


def _compress(suffix: str, file: BinaryIO) -> IO[bytes]:
    if suffix == ".gz":
        # No time and no name inside: the same results give the same bytes.
        return cast(IO[bytes], gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0))
    if suffix == ".bz2":
        return cast(IO[bytes], bz2.BZ2File(file, "wb"))
    if suffix == ".xz":
        return cast(IO[bytes], lzma.LZMAFile(file, "wb"))
    if suffix == ".zst":
        return cast(IO[bytes], zstd.ZstdFile(file, "wb"))
    return file


def _shown(name: str) -> str:
    return "stdin" if name == STDIN else name


def _reason(error: OSError) -> str:
    return {
        "No such file or directory": "no such file",
        "Permission denied": "permission denied",
        "No space left on device": "no space left on the disk",
    }.get(error.strerror or "", error.strerror or str(error))


def _similar(path: Path) -> str:
    """Suggest a file of that folder with nearly that name."""
    try:
        names = [entry.name for entry in path.parent.iterdir()][:10_000]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    return f"; did you mean {path.parent / close[0]}?" if close else ""
