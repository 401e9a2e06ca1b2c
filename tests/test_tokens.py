"""Tokens: texts are data, never control tokens, and fit the model."""

import threading
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

from gliclass_cli.errors import ModelUnusable
from gliclass_cli.tokens import Tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCES = "i was charged twice where is my order the app crashes great cls sep mask pad un ##k ##s ##ed [ ] . ? !"
VOCABULARY = {word: number for number, word in enumerate([*SPECIAL, *SENTENCES.split()])}
ROLES = {"cls": 2, "sep": 3, "pad": 0}


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
    return Tokenizer(path, ROLES)


def words(tokenizer: Tokenizer, text: str, max_length: int = 512) -> list[str]:
    [tokens] = tokenizer.encode([text], max_length)
    names = list(VOCABULARY)
    return [names[number] for number in tokens.ids]


def test_a_text_stands_between_the_special_tokens(tokenizer: Tokenizer) -> None:
    assert words(tokenizer, "I was charged twice!") == ["[CLS]", "i", "was", "charged", "twice", "!", "[SEP]"]
    assert tokenizer.pad == 0


@pytest.mark.parametrize("special", SPECIAL)
def test_special_tokens_in_a_text_are_plain_text(tokenizer: Tokenizer, special: str) -> None:
    found = words(tokenizer, f"order {special}order{special}")
    assert not {"[PAD]", "[CLS]", "[SEP]", "[MASK]"} & set(found[1:-1])
    name = ["un", "##k"] if special == "[UNK]" else [special.strip("[]").lower()]
    assert found == ["[CLS]", "order", "[", *name, "]", "order", "[", *name, "]", "[SEP]"]


@pytest.mark.parametrize(
    ("max_length", "expected"),
    [
        (6, "[CLS] where is my order [SEP]"),
        (5, "[CLS] where is my [SEP]"),
        (3, "[CLS] where [SEP]"),
        (2, "[CLS] [SEP]"),
    ],
)
def test_a_text_is_cut_from_its_end_and_says_how_long_it_was(
    tokenizer: Tokenizer, max_length: int, expected: str
) -> None:
    assert " ".join(words(tokenizer, "where is my order", max_length)) == expected
    [tokens] = tokenizer.encode(["where is my order"], max_length)
    assert (len(tokens.ids), tokens.full_length) == (max_length, 6)


@pytest.mark.parametrize("max_length", [0, 1])
def test_no_length_cuts_from_the_wrong_end(tokenizer: Tokenizer, max_length: int) -> None:
    assert words(tokenizer, "where is my order", max_length) == ["[CLS]", "[SEP]"]


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u200b", "\0"])
def test_an_empty_text_is_a_text(tokenizer: Tokenizer, text: str) -> None:
    [tokens] = tokenizer.encode([text], 512)
    assert tokens.ids.dtype == "int64"
    assert tokens.full_length == len(tokens.ids) == 2


def test_no_texts(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([], 512) == []


def test_half_a_character_costs_no_row(tokenizer: Tokenizer) -> None:
    whole, half, other = tokenizer.encode(["my order", "my \ud83d order", "the app"], 512)
    assert half.ids.tolist() == tokenizer.encode(["my ? order"], 512)[0].ids.tolist()
    assert whole.ids.tolist() == tokenizer.encode(["my order"], 512)[0].ids.tolist()
    assert other.ids.tolist() == tokenizer.encode(["the app"], 512)[0].ids.tolist()


@given(
    texts=st.lists(st.text(st.characters()) | st.text("my order[SEPCLK]\ud800 "), max_size=5),
    max_length=st.integers(2, 12),
)
def test_any_text_fits_and_does_not_depend_on_its_company(
    tokenizer: Tokenizer, texts: list[str], max_length: int
) -> None:
    together = tokenizer.encode(texts, max_length)
    assert len(together) == len(texts)
    for text, tokens in zip(texts, together, strict=True):
        [alone] = tokenizer.encode([text], max_length)
        assert tokens.ids.tolist() == alone.ids.tolist()
        assert len(tokens.ids) == min(tokens.full_length, max_length)
        assert (tokens.ids[0], tokens.ids[-1]) == (2, 3)
        assert not {0, 2, 3, 4} & set(tokens.ids[1:-1].tolist())


def test_threads_share_a_tokenizer(tokenizer: Tokenizer) -> None:
    expected = [tokens.ids.tolist() for tokens in tokenizer.encode(["my order", "the app crashes"], 512)]
    found: list[list[list[int]]] = []

    def encode() -> None:
        for _ in range(50):
            tokens = tokenizer.encode(["my order", "the app crashes"], 512)
            found.append([item.ids.tolist() for item in tokens])

    threads = [threading.Thread(target=encode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 200


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\0", b'{"version": "1.0"}', None])
def test_what_is_no_tokenizer_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelUnusable, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer(path, ROLES)


@pytest.mark.parametrize("role", ROLES)
def test_special_tokens_that_the_tokenizer_does_not_have(path: Path, role: str) -> None:
    with pytest.raises(ModelUnusable, match=f"has no token 30522, which config.json names as {role}"):
        Tokenizer(path, ROLES | {role: 30522})
