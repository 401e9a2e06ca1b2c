"""Tokens: texts are data, never control tokens, and fit the model."""

import threading
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

from gliclass_cli import tokens
from gliclass_cli.errors import ModelUnusable
from gliclass_cli.tokens import Tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCES = "i was charged twice where is my order the app crashes great cls sep mask pad un ##k ##s ##ed [ ] . ? !"
VOCABULARY = {word: number for number, word in enumerate([*SPECIAL, *SENTENCES.split()])}


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``tokenizer.json`` as checkpoints have it: with a template, truncation and padding of its own."""
    whole = tokenizers.Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    whole.normalizer = normalizers.BertNormalizer()
    whole.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    whole.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    whole.add_special_tokens(SPECIAL)
    whole.enable_truncation(4)
    whole.enable_padding(length=16)
    path = tmp_path_factory.mktemp("tokens") / "tokenizer.json"
    whole.save(str(path))
    return path


@pytest.fixture(scope="session")
def tokenizer(path: Path) -> Tokenizer:
    return Tokenizer(path)


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    [ids] = tokenizer.encode([text])
    return [str(tokenizer.token(int(number))) for number in ids]


def test_what_the_tokenizer_puts_around_a_text(tokenizer: Tokenizer) -> None:
    assert words(tokenizer, "I was charged twice!") == ["i", "was", "charged", "twice", "!"]
    assert (tokenizer.prefix.tolist(), tokenizer.suffix.tolist()) == ([2], [3])
    assert (tokenizer.number("[SEP]"), tokenizer.number("no such")) == (3, None)
    assert (tokenizer.token(3), tokenizer.token(10**6), tokenizer.token(-1)) == ("[SEP]", None, None)


@pytest.mark.parametrize("special", SPECIAL)
def test_special_tokens_in_a_text_are_plain_text(tokenizer: Tokenizer, special: str) -> None:
    found = words(tokenizer, f"order {special}order{special}")
    assert not {"[PAD]", "[CLS]", "[SEP]", "[MASK]"} & set(found)
    name = ["un", "##k"] if special == "[UNK]" else [special.strip("[]").lower()]
    assert found == ["order", "[", *name, "]", "order", "[", *name, "]"]


def unigram(**settings: object) -> Any:
    """A tokenizer of SentencePiece's kind: its control tokens are ordinary pieces of the vocabulary too."""
    pieces = [("[PAD]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("[UNK]", 0.0)]
    pieces += [("▁good", -3.0), ("▁bad", -3.0), ("good", -4.0), *((c, -9.0) for c in "▁abcdgoSEPL[]<>/")]
    whole = tokenizers.Tokenizer(models.Unigram(pieces, 3, False))
    whole.pre_tokenizer = pre_tokenizers.Metaspace("▁", **settings)
    whole.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return whole


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("text", ["{}", "good{}bad", " {} good", "<{}>", "{}{}"])
def test_control_tokens_of_the_vocabulary_are_plain_text(tmp_path: Path, special: bool, text: str) -> None:
    whole = unigram()
    added = [tokenizers.AddedToken(name, special=special) for name in ("<<LABEL>>", "<<SEP>>")]
    (whole.add_special_tokens if special else whole.add_tokens)(added)
    whole.save(str(tmp_path / "tokenizer.json"))
    controls = {name: whole.token_to_id(name) for name in ("[CLS]", "[SEP]", "<<LABEL>>", "<<SEP>>")}
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", [1, 2])
    assert (tokenizer.prefix.tolist(), tokenizer.suffix.tolist()) == ([1], [2])
    assert {name: tokenizer.number(name) for name in controls} == controls
    for name, number in controls.items():
        assert number in whole.encode(text.replace("{}", name), add_special_tokens=False).ids  # without us it would be
        [ids] = tokenizer.encode([text.replace("{}", name)])
        assert not set(controls.values()) & set(ids.tolist())
        assert len(ids) > 1
    [plain] = tokenizer.encode(["good bad"])
    assert plain.tolist() == whole.encode("good bad", add_special_tokens=False).ids


@pytest.mark.parametrize(("scheme", "later"), [("first", ["good"]), ("always", ["▁good"]), ("never", ["good"])])
def test_a_later_piece_begins_no_word_where_only_the_first_does(tmp_path: Path, scheme: str, later: list[str]) -> None:
    whole = unigram(prepend_scheme=scheme)
    whole.add_special_tokens(["<<LABEL>>"])
    whole.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    [first], [second] = tokenizer.encode(["good"]), tokenizer.encode(["good"], first=False)
    mark = whole.token_to_id("<<LABEL>>")
    together = whole.encode("good<<LABEL>>good", add_special_tokens=False).ids
    assert together == [*first, mark, *second]
    assert [tokenizer.token(int(number)) for number in second] == later


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u200b", "\0"])
def test_an_empty_text_is_a_text(tokenizer: Tokenizer, text: str) -> None:
    [ids] = tokenizer.encode([text])
    assert ids.dtype == "int64"
    assert len(ids) == 0


def test_no_texts(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([]) == []


def test_half_a_character_costs_no_row(tokenizer: Tokenizer) -> None:
    whole, half, other = tokenizer.encode(["my order", "my \ud83d order", "the app"])
    assert half.tolist() == tokenizer.encode(["my ? order"])[0].tolist()
    assert whole.tolist() == tokenizer.encode(["my order"])[0].tolist()
    assert other.tolist() == tokenizer.encode(["the app"])[0].tolist()


@given(texts=st.lists(st.text(st.characters()) | st.text("my order[SEPCLK]\ud800 "), max_size=5))
def test_a_text_does_not_depend_on_its_company(tokenizer: Tokenizer, texts: list[str]) -> None:
    together = tokenizer.encode(texts)
    assert len(together) == len(texts)
    for text, ids in zip(texts, together, strict=True):
        [alone] = tokenizer.encode([text])
        assert ids.tolist() == alone.tolist()
        assert not {0, 2, 3, 4} & set(ids.tolist())


def test_threads_share_a_tokenizer(tokenizer: Tokenizer) -> None:
    expected = [ids.tolist() for ids in tokenizer.encode(["my order", "the app crashes"])]
    found: list[list[list[int]]] = []

    def encode() -> None:
        texts = ["my order", "the app crashes"]
        found.extend([ids.tolist() for ids in tokenizer.encode(texts)] for _ in range(50))

    threads = [threading.Thread(target=encode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 200


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\0", b'{"version": "1.0"}'])
def test_what_is_no_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelUnusable, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match=r"tokenizer\.json: cannot be read: No such file"):
        Tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("text", ["i was  charged twice ! " * 200, "where\nis my order " * 300, "a" * 3000, "un" * 50])
def test_a_long_text_is_tokenised_in_parts_as_if_it_were_whole(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    whole = tokenizer.encode([text, "my order", text])
    monkeypatch.setattr("gliclass_cli.tokens._MOST_CHARACTERS", 1000)
    parts = tokenizer.encode([text, "my order", text])
    if " " in text:
        assert [ids.tolist() for ids in parts] == [ids.tolist() for ids in whole]
    assert len(parts) == 3
    assert "".join(tokens._parts(text)) == text


def test_a_tokenizer_that_is_too_large_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gliclass_cli.tokens._LARGEST_FILE", 100)
    with pytest.raises(ModelUnusable, match="is too large for a tokenizer"):
        Tokenizer(path)
