"""Cutting JSON into its elements while it comes in, without reading them."""

import re
import sys
from collections.abc import Iterator

# Strings, and all else that neither opens nor closes nor separates values: inside of an element, and between elements.
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_INSIDE = re.compile(rb'(?:[^"\[\]{}]+|' + _STRING + rb")*", re.DOTALL)
_BETWEEN = re.compile(rb'(?:[^"\[\]{},]+|' + _STRING + rb")*", re.DOTALL)
# The rest of a string that began in an earlier block.
_STRING_BODY = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)


class JsonScanner:
    """Cuts a JSON array, or objects one after another, into its elements, whatever the blocks that they come in.

    An element of more than ``most`` bytes is not kept: None stands for its text.
    """

    def __init__(self, most: int = sys.maxsize) -> None:
        self._most = most
        self.line = 1  # where the text that is not yet given out begins
        self.in_array = False
        self._depth = 0
        self._quoted = self._escaped = False  # the text so far ends in a string, and there after a backslash
        self._value = bytearray()
        self._dropped = 0  # the line on which an element began that is too long to be kept

    def feed(self, block: bytes) -> Iterator[tuple[int, bytes | None]]:
        """Yield (line, text) of each element that ends in this block."""
        begin = at = 0
        while at < len(block):
            if self._quoted:
                at = self._skip_string(block, at)
                continue
            found = (_INSIDE if self._depth > self.in_array else _BETWEEN).match(block, at)
            at = found.end() + 1 if found else at + 1
            token = block[at - 1 : at]
            if token == b'"':
                self._quoted = True
            elif token == b"[" and self._depth == 0 and self._is_blank(block[begin : at - 1]):
                self._take(block[begin : at - 1])
                begin, self.in_array, self._depth = at, True, 1
            elif token in (b"[", b"{"):
                self._depth += 1
            elif token == b",":
                yield self._take(block[begin : at - 1])
                begin = at
            elif token == b"]" and self._depth == self.in_array == 1:
                last = self._take(block[begin : at - 1])
                if last[1] != b"":
                    yield last
                begin, self.in_array, self._depth = at, False, 0
            elif token:
                self._depth = max(int(self.in_array), self._depth - 1)
                if self._depth == 0:
                    yield self._take(block[begin:at])
                    begin = at
        self._keep(block[begin:])

    def rest(self) -> Iterator[tuple[int, bytes | None]]:
        """Yield what no bracket or comma has ended."""
        if not self._is_blank(b""):
            yield self._take(b"")

    def _is_blank(self, end: bytes) -> bool:
        """Tell whether there is nothing but space so far, ``end`` included."""
        return not (self._dropped or self._value.strip() or end.strip())

    def _keep(self, piece: bytes) -> None:
        """Add a piece to the text so far, unless that is too long."""
        if self._dropped:
            self.line += piece.count(b"\n")
            return
        self._value += piece
        if len(self._value) > self._most:
            start, text = self._take(b"")
            self._dropped = 0 if text == b"" else start  # space before an element is not counted to it

    def _take(self, end: bytes) -> tuple[int, bytes | None]:
        """Give out the text so far with its last piece, and the line on which it begins."""
        value = bytes(self._value) + end
        self._value.clear()
        text = value.lstrip()
        start = self._dropped or self.line + value.count(b"\n", 0, len(value) - len(text))
        self.line += value.count(b"\n")
        text = text.rstrip()
        too_long = self._dropped or len(text) > self._most
        self._dropped = 0
        return start, None if too_long else text

    def _skip_string(self, block: bytes, at: int) -> int:
        """Return where the string ends that is open at ``at``, or the end of the block."""
        at += self._escaped
        self._escaped = False
        body = _STRING_BODY.match(block, at)
        at = body.end() if body else at
        if at < len(block):
            self._quoted = self._escaped = block[at] == ord("\\")
            at += 1
        return at
