"""Damage inputs at random, and see that each ends in a result or in a clean error.

    python scripts/fuzz.py                              # 1,000 cases of each target
    python scripts/fuzz.py csv tokenizer -n 20000 --seed 7 --keep tests/corpus

A case is a sound file with bytes and pieces changed. What reads text is run in this process; model folders are run in
a child for each case, since native libraries may end theirs. A crash is an exception that is none of ours, a case that
takes more than 20 seconds of processor time, or one that takes 1 GB more memory. Prints cases and crashes of each
target; ends with 1 after a crash. --keep writes the cases that crashed to FOLDER/TARGET/, where tests/test_corpus.py
replays them.
"""

import argparse
import bz2
import contextlib
import gzip
import hashlib
import json
import lzma
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from gliclass_cli.calibration import read_calibration
from gliclass_cli.errors import GliclassError
from gliclass_cli.files import open_source, read_text_file, zstd
from gliclass_cli.labels import LabelProblem, labels_from_cell, parse_label_file
from gliclass_cli.predictions import Prediction
from gliclass_cli.prompts import parse_examples
from gliclass_cli.readers import ReadOptions, read_rows
from gliclass_cli.records import FieldProblem, text_of
from gliclass_cli.writers import CsvWriter, JsonlWriter, TableWriter, Writer

CLEAN = (GliclassError, LabelProblem)
SECONDS = 20
MEMORY = 1 << 30
CORPUS = Path(__file__).parents[1] / "tests" / "corpus"
Check = Callable[[bytes, Path], None]

JSONL = (
    b'{"id": 1, "text": "charged twice", "big": 123456789012345678901234567890}\n{"text": "\\ud83d\\u0000\\n", "a": '
    b'[1e400, -0, {"b": null}]}\n\n["no", "object"]\n{"text": 5}\n{"text": "a", "text": "b"}\n'
)
JSON = b'[{"text": "a"},\n {"text": "[{,\\"}]", "n": [1, [2, {}]]}, 5, null, "x"]\n{"text": "c"} {"text": "d"}'
CSV = 'id,text,n\r\n1,"a ""quoted"", long\ncell",=1+1\n2,é,\n\n3,"c"\n4\n5,x,y,z\n'.encode()
TEXT = b"first line\nsecond \xc3\xa9 \xf0\x9f\x99\x82\r\n\n\x1b]0;title\x07 \x00 last"
LABELS = b'billing\nshipping\tparcels, delays\n\nother "label"\n'
NESTED = b'{"topic": {"billing": "money", "shipping": null}, "tone": ["angry", "calm"]}'
EXAMPLES = b'{"text": "a", "labels": ["billing"]}\n{"text": "b", "label": "shipping"}\n'
CALIBRATION = json.dumps(
    {
        "format": "gliclass-calibration",
        "version": 1,
        "model": "m",
        "mode": "multi",
        "temperature": 1.5,
        "bias": -0.25,
        "thresholds": {"billing": 0.5},
        "rows": 10,
        "cross_validation": {"folds": 5},
    }
).encode()
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<<LABEL>>", "<<SEP>>", "a", "b", "billing", "shipping"]
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {"id": number, "content": word, "special": number < 6}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number, word in enumerate(WORDS[:6])
    ],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Whitespace"},
            {"type": "Split", "pattern": {"Regex": "\\d+"}, "behavior": "Isolated", "invert": False},
        ],
    },
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            word: {"id": word, "ids": [number], "tokens": [word]} for number, word in ((2, "[CLS]"), (3, "[SEP]"))
        },
    },
    "decoder": None,
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {word: number for number, word in enumerate(WORDS)},
    },
}
UNIGRAM = {
    **TOKENIZER,
    "normalizer": None,
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
    "model": {
        "type": "Unigram",
        "unk_id": 1,
        "byte_fallback": False,
        "vocab": [[word, -1.5] for word in [*WORDS, "▁a"]],
    },
}
BPE = {
    **TOKENIZER,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {word: number for number, word in enumerate([*WORDS, "ab"])},
        "merges": [["a", "b"]],
    },
}
BACKBONE = {
    "model_type": "bert",
    "hidden_size": 4,
    "vocab_size": len(WORDS),
    "num_hidden_layers": 1,
    "max_position_embeddings": 64,
}
CONFIG: dict[str, Any] = {
    "model_type": "GLiClass",
    "architecture_type": "uni-encoder",
    "encoder_config": BACKBONE,
    "class_token_index": 4,
    "text_token_index": 5,
    "vocab_size": len(WORDS),
    "hidden_size": 4,
    "inference": {
        "label_template": "{label}",
        "max_length": 32,
        "calibration": {"single": {"temperature": 1.0}, "multi": {"temperature": 1.0, "bias": 0.0}},
    },
}
SETTINGS = json.dumps(CONFIG).encode()
GRAPH = CORPUS / "onnx" / "published.onnx"


# --- what reads each kind of input ----------------------------------------------------------------------------------


def rows(kind: str | None, **options: Any) -> Check:
    """Read rows, find their texts, and write them in each format."""

    def check(data: bytes, folder: Path) -> None:
        path = folder / "input"
        path.write_bytes(data)
        with open_source(str(path)) as source:
            read = read_rows(source, ReadOptions(kind, **options))
            writers: list[Writer] = [JsonlWriter(), CsvWriter(columns=read.columns), TableWriter(10)]
            for record in read.records:
                for writer in writers:
                    written = writer.row(record, None if record.error or writer.check(record) else PREDICTION)
                    if isinstance(writer, JsonlWriter) and record.error is None and "prediction" not in record.fields:
                        json.loads(written, parse_int=str)
                with contextlib.suppress(FieldProblem):
                    text_of(record.fields or {})

    return check


PREDICTION = Prediction("billing", 0.9, ("billing",), {"billing": 0.9})


def label_file(data: bytes, folder: Path) -> None:
    """Read a label file, as lines and as JSON, and a cell of labels."""
    for name in ("labels.txt", "labels.json"):
        (folder / name).write_bytes(data)
        with contextlib.suppress(*CLEAN):
            text = read_text_file(str(folder / name), "label file", LabelProblem)
            found = parse_label_file(text, name)
            json.dumps(found.nest(dict.fromkeys(found.names, 0.5)))
    labels_from_cell(data.decode("utf-8", "replace"))


def examples(data: bytes, folder: Path) -> None:
    """Read an examples file."""
    (folder / "examples").write_bytes(data)
    parse_examples(read_text_file(str(folder / "examples"), "examples", LabelProblem), "examples")


def calibration(data: bytes, folder: Path) -> None:
    """Read a calibration file."""
    (folder / "calibration.json").write_bytes(data)
    read_calibration(str(folder / "calibration.json")).to_bytes()


def model(name: str) -> Check:
    """Load a model's folder with one file replaced, and classify."""

    def check(data: bytes, folder: Path) -> None:
        from gliclass_cli.classifier import Classifier
        from gliclass_cli.runtime import Runtime

        files = {
            "config.json": SETTINGS,
            "tokenizer.json": json.dumps(TOKENIZER).encode(),
            "model.onnx": GRAPH.read_bytes(),
            name: data,
        }
        for file, content in files.items():
            (folder / file).write_bytes(content)
        classifier = Classifier.load(folder, runtime=Runtime(backend="onnx", threads=1, offline=True))
        [prediction, *_] = classifier.predict(["a b 12 billing é", "", "x" * 300], ["billing", "shipping", "é"])
        prediction.to_dict()

    return check


def compressed() -> list[bytes]:
    """Return sound compressed inputs, one of several members."""
    data = JSONL * 3
    found = [gzip.compress(data, mtime=0), bz2.compress(data), lzma.compress(data), zstd.compress(data)]
    return [*found, found[0] + gzip.compress(b"x", mtime=0), found[2] + b"\0" * 4 + found[2]]


ENCODINGS = ("utf-16", "utf-32", "cp1252", "shift_jis", "gb18030", "utf-7", "hz", "iso2022_jp", "iso2022_kr", "cp424")
# By name: sound inputs, what reads them, whether in a child.
TARGETS: dict[str, tuple[list[bytes], Check, bool]] = {
    "jsonl": ([JSONL], rows("jsonl"), False),
    "json": ([JSON], rows("json"), False),
    "csv": ([CSV], rows("csv"), False),
    "tsv": ([CSV.replace(b",", b"\t")], rows("tsv"), False),
    "text": ([TEXT, b"\xef\xbb\xbf" + TEXT], rows("text"), False),
    "sniffed": ([JSONL, TEXT.replace(b"\0", b""), JSON], rows(None), False),
    "short-rows": ([CSV * 3], rows("csv", max_row_bytes=16), False),
    "short-json": ([JSONL, JSON], rows("json", max_row_bytes=8), False),
    "compressed": (compressed(), rows(None), False),
    "labels": ([LABELS, NESTED, b'["a", "b"]', b"a|b|c"], label_file, False),
    "examples": ([EXAMPLES], examples, False),
    "calibration": ([CALIBRATION], calibration, False),
    "config": ([SETTINGS], model("config.json"), True),
    "tokenizer": ([json.dumps(made).encode() for made in (TOKENIZER, UNIGRAM, BPE)], model("tokenizer.json"), True),
    "onnx": ([], model("model.onnx"), True),
}
for encoding in ENCODINGS:
    kind, data = ("csv", CSV.replace("é".encode(), b"e")) if encoding == "utf-16" else ("jsonl", JSONL)
    TARGETS[f"encoding-{encoding}"] = ([data.decode().encode(encoding)], rows(kind, encoding=encoding), False)


# --- damage ----------------------------------------------------------------------------------------------------------

PIECES = [b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":", b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"\x1b[31m"]
PIECES += [b"NaN", b"Infinity", b"-1", b"1e999", b"0", b"9" * 400, b"null", b"true", b'"\\ud800"', b"\xed\xa0\x80"]
PIECES += [b"4294967296", b"-9223372036854775809", b"2147483648", b"\xe2\x80\xae", b"{}", b"[]", b'""', b"1.5", b"\t|"]


def mutate(data: bytes, seeds: list[bytes], draw: random.Random) -> bytes:
    """Change some bytes or pieces."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        begin = draw.randrange(len(changed) + 1)
        end = min(len(changed), begin + draw.choice((0, 1, 1, 2, 4, 16, 64)))
        kind = draw.randrange(8)
        if kind == 0 and begin < len(changed):
            changed[begin] ^= 1 << draw.randrange(8)
        elif kind == 1 and begin < len(changed):
            changed[begin] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        elif kind == 2:
            del changed[begin:end]
        elif kind == 3:
            changed[begin:begin] = changed[begin:end] * draw.choice((1, 2, 2000 if draw.random() < 0.05 else 3))
        elif kind == 4:
            del changed[draw.randrange(len(changed) + 1) :]
        elif kind == 5:
            other = draw.choice(seeds)
            cut = draw.randrange(len(other) + 1)
            changed[begin:end] = other[cut : cut + draw.choice((4, 16, 64))]
        elif kind == 6:
            replace_value(changed, begin, draw)
        else:
            changed[begin:end] = draw.choice(PIECES) * draw.choice((1, 1, 1, 3, 1100 if draw.random() < 0.1 else 1))
    return bytes(changed[: 1 << 20])


def replace_value(data: bytearray, begin: int, draw: random.Random) -> None:
    """Put another value in the place of the next one of JSON, so that the rest stays JSON."""
    colon = data.find(b":", begin)
    ends = [at for at in (data.find(mark, colon + 1) for mark in (b",", b"}", b"]")) if at >= 0]
    if colon >= 0 and ends:
        data[colon + 1 : min(ends)] = draw.choice(PIECES)


# --- running ---------------------------------------------------------------------------------------------------------


class Slow(Exception):
    """A case took too long."""


def too_slow(number: int, frame: object) -> NoReturn:
    """End a case that takes too long."""
    raise Slow(f"more than {SECONDS} s")


def attempt(check: Check, data: bytes, folder: Path) -> str:
    """Run a case here; return what is wrong, or nothing."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGPROF, too_slow)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        check(data, folder)
    except CLEAN as error:
        str(error).encode("utf-8", "backslashreplace")
    except BaseException:  # noqa: BLE001 - that is what is looked for; a panic of Rust is no Exception
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return f"took {grown >> 20} MB" if grown > MEMORY else ""


def attempt_apart(check: Check, data: bytes, folder: Path) -> str:
    """Run a case in a child; return what is wrong, or nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # native libraries tell of their panics there
        output = os.open(folder / "stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        problem = attempt(check, data, folder)
        sys.stdout.flush()
        if os.fstat(output).st_size:
            problem += " wrote to standard output, which is for results"
        os.write(writer, problem.encode("utf-8", "backslashreplace")[-4000:])
        os._exit(0)
    os.close(writer)
    end = time.monotonic() + 10 * SECONDS  # something waits for ever
    while (status := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)
    with os.fdopen(reader, "rb") as file:
        told = file.read().decode("utf-8", "replace")
    return told or (f"ended with status {status[1]}" if status[1] else "")


def run_case(name: str, data: bytes, folder: Path) -> str:
    """Run one case of a target, with its files in ``folder``; return what is wrong, or nothing."""
    _, check, apart = TARGETS[name]
    return (attempt_apart if apart else attempt)(check, data, folder)


def corpus(name: str) -> list[Path]:
    """Return the kept cases of a target."""
    return sorted((CORPUS / name).glob("*"))


def cases(name: str, number: int, seed: int) -> Iterator[bytes]:
    """Yield damaged inputs of a target, the same ones for the same seed."""
    draw = random.Random(f"{name} {seed}")
    sound = TARGETS[name][0] + [path.read_bytes() for path in corpus(name)]
    for _ in range(number):
        yield mutate(draw.choice(sound), sound, draw)


def main() -> int:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("-n", type=int, default=1000, help="cases of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; known are {', '.join(TARGETS)}")
    all_crashes = 0
    if any(TARGETS[name][2] for name in arguments.targets or TARGETS):
        import gliclass_cli.backends.onnx
        import gliclass_cli.classifier  # noqa: F401 - once, not in each child
    for name in arguments.targets or TARGETS:
        start, seen = time.monotonic(), dict[str, bytes]()
        crashes = 0
        with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
            for data in cases(name, arguments.n, arguments.seed):
                if problem := run_case(name, data, Path(folder)):
                    crashes += 1
                    if seen.setdefault(problem[-300:], data) is data:
                        print(f"{name}: {problem.strip()[-1500:]}\n  {data[:200]!r}", file=sys.stderr)
        for data in seen.values() if arguments.keep else ():
            (arguments.keep / name).mkdir(parents=True, exist_ok=True)
            (arguments.keep / name / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
        all_crashes += crashes
        print(f"{name:<20} {arguments.n:>7,} cases {crashes:>5} crashes {time.monotonic() - start:8.1f} s", flush=True)
    return 1 if all_crashes else 0


if __name__ == "__main__":
    sys.exit(main())
