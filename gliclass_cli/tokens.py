"""Tokenising with a model's ``tokenizer.json``: texts and labels are data, never control tokens."""

import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import Tokenizer as _Tokenizer

from gliclass_cli.errors import ModelUnusable

Ids = NDArray[np.int64]

# Tokens that steer a model, whatever their ids: <<LABEL>>, <<SEP>>, <<EXAMPLE>>, <</EXAMPLE>>, <<TRUE_LABEL>> ...
_LARGEST_FILE = 200_000_000  # bytes of a tokenizer.json
# The tokenizer takes some 100 bytes a character while it works.
_MOST_CHARACTERS = 1_000_000
_SPACE_WITHIN = 10_000
_SINGLE_SPACE = re.compile(r"\S (?=\S)")
_CONTROL = re.compile(r"<</?[A-Z_]+>>")


class Tokenizer:
    """Turns strings into token ids. Inputs are put together by id, so that nothing typed becomes a control token.

    ``[SEP]`` or ``<<LABEL>>`` in a text is tokenised like any other words. ``prefix`` and ``suffix`` are the ids that
    the tokenizer puts around an input, such as ``[CLS]`` and ``[SEP]``.
    """

    def __init__(self, path: Path, control: Collection[int] = ()) -> None:
        """Load a ``tokenizer.json``; ``control`` are ids that steer the model. Raises ModelUnusable."""
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise ModelUnusable(f"{path}: is too large for a tokenizer")
            data = path.read_bytes()
            original = _Tokenizer.from_buffer(data)
            original.no_truncation()
            original.no_padding()
            self.prefix, self.suffix = _around(original)
            # In one string with others, a piece that does not come first has no word boundary put before it.
            first, later = _without_control(original, data, control)
        except BaseException as error:
            raise _unusable(path, error) from error
        self._path = path
        self._original = original
        self._first, self._later = first, later

    def token(self, number: int) -> str | None:
        """Return the token of an id, or None where there is none."""
        return self._original.id_to_token(number) if 0 <= number < 2**32 else None

    def number(self, token: str) -> int | None:
        """Return the id of a token, or None where there is none."""
        number: int | None = self._original.token_to_id(token)
        return number

    def decode(self, ids: Ids) -> str:
        """Return ids as text for people, control tokens included."""
        text: str = self._original.decode(ids.tolist(), skip_special_tokens=False)
        return text

    def encode(self, texts: Sequence[str], *, first: bool = True) -> list[Ids]:
        """Tokenise texts, nothing added and nothing cut; ``first``: no other piece of the input stands before.

        A text of more than a million characters is tokenised in parts, so that memory stays bounded.
        """
        tokenizer = self._first if first else self._later
        encoded: list[Ids] = []
        try:
            for batch in _batches(texts):
                if len(batch) == 1 and len(batch[0]) > _MOST_CHARACTERS:
                    head, *rest = _parts(batch[0])
                    pieces = [*_encode(tokenizer, [head]), *(_encode(self._later, [part])[0] for part in rest)]
                    encoded.append(np.concatenate(pieces))
                else:
                    encoded += _encode(tokenizer, batch)
        except BaseException as error:
            raise _unusable(self._path, error) from error
        return encoded


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[Ids]:
    try:
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    except (TypeError, UnicodeEncodeError):  # half of a character (a lone surrogate) is no text: "?" instead
        whole = [text.encode("utf-8", "replace").decode() for text in texts]
        encodings = tokenizer.encode_batch_fast(whole, add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield texts, in order, in batches of at most so many characters, or of one text."""
    start = characters = 0
    for end, text in enumerate(texts):
        if end > start and characters + len(text) > _MOST_CHARACTERS:
            yield texts[start:end]
            start, characters = end, 0
        characters += len(text)
    if start < len(texts):
        yield texts[start:]


def _parts(text: str) -> Iterator[str]:
    """Cut a long text before single spaces, where tokenizers begin a new word; anywhere where there is none near."""
    start = 0
    while len(text) - start > _MOST_CHARACTERS:
        end = start + _MOST_CHARACTERS
        spaces = [found.start() + 1 for found in _SINGLE_SPACE.finditer(text, end - _SPACE_WITHIN, end)]
        end = spaces[-1] if spaces else end
        yield text[start:end]
        start = end
    yield text[start:]


def _unusable(path: Path, error: BaseException) -> BaseException:
    """Return what to raise where a tokenizer failed; a panic of its library is no ``Exception``, but no end either."""
    if isinstance(error, OSError):
        return ModelUnusable(f"{path}: cannot be read: {error.strerror}")
    own = isinstance(error, ModelUnusable | MemoryError)
    if own or not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
        return error
    return ModelUnusable(f"{path}: not a tokenizer: {error}")


def _around(tokenizer: Any) -> tuple[Ids, Ids]:
    """Return the ids that the tokenizer puts before and after a text."""
    whole = tokenizer.encode("a").ids
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    start = next((i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare), 0)
    parts = whole[:start], whole[start + len(bare) :]
    return np.array(parts[0], dtype=np.int64), np.array(parts[1], dtype=np.int64)


def _without_control(original: Any, data: bytes, control: Iterable[int]) -> tuple[Any, Any]:
    """Return tokenizers for the first piece of an input and for later ones that never give a control token.

    Special tokens are not looked for in texts at all. That is enough for most vocabularies; where a control token
    comes out all the same (not marked as special, or an ordinary piece of the vocabulary too) it is renamed to
    something that nobody can type.
    """
    content, tokenizer = None, original
    tokenizer.encode_special_tokens = True
    numbers = _control_tokens(original, control)
    typed = [text for name in numbers.values() for text in (name, f"a{name}a", f"a {name} a")]
    found = {number for encoding in tokenizer.encode_batch(typed, add_special_tokens=False) for number in encoding.ids}
    if found & numbers.keys():
        content = _renamed(orjson.loads(data), numbers)
        tokenizer = _rebuilt(content)
    if b'"prepend_scheme"' not in data:
        return tokenizer, tokenizer
    later = _later_pieces(content or orjson.loads(data))
    return tokenizer, tokenizer if later is None else _rebuilt(later)


def _control_tokens(tokenizer: Any, control: Iterable[int]) -> dict[int, str]:
    """Return id and name of the tokens that no text may contain; an unknown word may be any text."""
    numbers = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    numbers |= {n: t.content for n, t in tokenizer.get_added_tokens_decoder().items() if _CONTROL.fullmatch(t.content)}
    numbers |= {number: name for number in control if (name := tokenizer.id_to_token(number)) is not None}
    unknown = getattr(tokenizer.model, "unk_token", None)
    return {number: name for number, name in numbers.items() if name not in (unknown, "<unk>", "[UNK]")}


def _renamed(content: dict[str, Any], numbers: dict[int, str]) -> dict[str, Any]:
    """Return a tokenizer's JSON in which control tokens have names that nobody knows."""
    names = {name: f"{secrets.token_hex(16)}{number}" for number, name in numbers.items()}
    model = content["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(token, token), *rest] for token, *rest in vocabulary]
    for token in content.get("added_tokens", ()):
        if token["content"] in names:
            token.update(content=names[token["content"]], special=True, normalized=False)
    content["post_processor"] = None  # it names tokens; nothing is added here
    return content


def _later_pieces(content: dict[str, Any]) -> dict[str, Any] | None:
    """Return a tokenizer's JSON that marks no word boundary at the beginning, or None where it never does."""
    stages = [content.get("pre_tokenizer") or {}]
    stages += stages[0].get("pretokenizers", ())
    found = [stage for stage in stages if stage.get("type") == "Metaspace" and stage.get("prepend_scheme") == "first"]
    for stage in found:
        stage["prepend_scheme"] = "never"
    return content if found else None


def _rebuilt(content: dict[str, Any]) -> Any:
    tokenizer = _Tokenizer.from_buffer(orjson.dumps(content))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer
