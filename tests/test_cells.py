"""Columns of text on a terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliclass_cli.cells import cells, cut, fit


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("billing", 7),
        ("", 0),
        ("配送", 4),
        ("ｶﾅ", 2),
        ("カナ", 4),
        ("한국", 4),
        (unicodedata.normalize("NFD", "한국"), 4),
        ("é", 1),
        ("e\u0301", 1),
        ("🎉", 2),
        ("👍🏽", 4),
        ("a\u200bb", 2),
        ("ก็", 1),
        ("…━", 2),
    ],
)
def test_columns(text: str, columns: int) -> None:
    assert cells(text) == columns


def test_a_wide_character_is_never_halved() -> None:
    assert cut("配送", 3) == "配"
    assert fit("配送", 3) == "配 "
    assert fit("配送問題", 6, mark="…") == "配送… "
    assert fit("e\u0301te\u0301", 5) == "e\u0301te\u0301  "


@given(st.text(), st.integers(3, 40))
def test_what_is_fitted_takes_exactly_its_columns(text: str, width: int) -> None:
    assert cells(fit(text, width, mark="...")) == width
    assert text.startswith(cut(text, width))
    assert cells(cut(text, width)) <= width
