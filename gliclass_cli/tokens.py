"""Tokenising with the model's ``tokenizer.json``: texts and labels are data, never control tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as _Tokenizer

from gliclass_cli.errors import ModelUnusable

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tokens:
    """One input of the model: token ids (length,) with their special tokens, and the length before it was cut."""

    ids: Ids
    full_length: int


class Tokenizer:
    """Turns strings into token ids, and composes the input around them by token id.

    ``[SEP]`` typed in a text is tokenised like any other word: special tokens exist as ids only.
    """

    def __init__(self, path: Path, special_tokens: Mapping[str, int]) -> None:
        """Load a ``tokenizer.json``. Raises ModelUnusable."""
        try:
            self._tokenizer = _Tokenizer.from_file(str(path))
        except Exception as error:
            raise ModelUnusable(f"{path}: not a tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        for role, token in special_tokens.items():
            if self._tokenizer.id_to_token(token) is None:
                raise ModelUnusable(f"{path}: has no token {token}, which config.json names as {role}")
        self._before = np.array([special_tokens["cls"]], dtype=np.int64)
        self._after = np.array([special_tokens["sep"]], dtype=np.int64)
        self.pad = special_tokens["pad"]

    def encode(self, texts: Sequence[str], max_length: int) -> list[Tokens]:
        """Tokenise texts as ``[CLS] text [SEP]``, each cut to ``max_length`` tokens in all."""
        room = max(0, max_length - len(self._before) - len(self._after))
        try:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):  # half of a character (a lone surrogate) is no text: "?" instead
            whole = [text.encode("utf-8", "replace").decode() for text in texts]
            encodings = self._tokenizer.encode_batch_fast(whole, add_special_tokens=False)
        tokens = []
        for encoding in encodings:
            ids = np.array(encoding.ids, dtype=np.int64)
            composed = np.concatenate((self._before, ids[:room], self._after))
            tokens.append(Tokens(composed, len(ids) + len(self._before) + len(self._after)))
        return tokens
