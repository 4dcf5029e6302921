"""Defines the words of a corpus: compounds, invisible characters, scripts without spaces."""

import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from vocabgraft.errors import VocabgraftError
from vocabgraft.tokens.tokenizer import WITHOUT_SPACES

# Hyphen-minus, hyphen and non-breaking hyphen; an en dash joins numbers and names of different things.
HYPHENS = "-\u2010\u2011"
APOSTROPHES = "'\u2019"
# A whole-word token may contain these, and next to them another word may begin.
JOINERS = HYPHENS + APOSTROPHES
# Word characters for the tokenizers library, but not for `\w`.
JOIN_CONTROLS = "\u200c\u200d"


@lru_cache(1)
def marks() -> str:
    """The combining marks, which are word characters for a tokenizer but not for `re`."""
    return "".join(chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "M")


def deleted_characters(normalise: Callable[[str], str]) -> dict[int, None]:
    """The invisible characters that a base's normalizer removes from a word, as a table for `str.translate`.

    Soft hyphens and zero-width characters are not word characters, so a word that contains one would be counted as two,
    although a base that removes them reads one.
    """
    plain = normalise("ab")
    return {code: None for code in _invisible() if normalise(f"a{chr(code)}b") == plain}


@lru_cache(1)
def _invisible() -> tuple[int, ...]:
    """Format, control and private-use characters, which PDF conversions leave behind."""
    signs = (chr(code) for code in range(0x10000))
    found = (sign for sign in signs if unicodedata.category(sign) in ("Cf", "Cc", "Co") and not sign.isspace())
    return (*map(ord, found), 0xFFFD)


class WordForms:
    """Finds words and compounds in strings between spaces."""

    def __init__(self, segment: bool = False) -> None:
        letters, hyphens, joiners = rf"\w{marks()}{JOIN_CONTROLS}", re.escape(HYPHENS), re.escape(JOINERS)
        alone, ended = f"(?<![{letters}{joiners}])", f"(?![{letters}{hyphens}])"
        self._word = re.compile(f"[{letters}]+")
        self._hyphenated = re.compile(f"{alone}[{letters}]+(?:[{hyphens}][{letters}]+)+{ended}")
        self._name = re.compile(f"{alone}[{letters}]{{1,3}}[{APOSTROPHES}][{letters}]{{3,}}{ended}")
        self._segments = _segmenter() if segment else None

    def words(self, form: str) -> list[str]:
        """The words of a form; the segmenter, if there is one, divides scripts without spaces."""
        found: list[str] = self._word.findall(form)
        if self._segments is None or not WITHOUT_SPACES.search(form):
            return found
        return [part for word in found for part in self._segments(word) if self._word.fullmatch(part)]

    def compounds(self, form: str) -> Iterator[str]:
        """Hyphenated words such as SARS-CoV-2 and names such as O'Brien, but not `it's`, `l'eau` or `pre-`."""
        if not any(sign in form for sign in JOINERS):
            return
        for match in self._hyphenated.finditer(form):
            # Without letters it is a number, a date or a range.
            if any(map(str.isalpha, match[0])):
                yield match[0]
        for match in self._name.finditer(form):
            before, after = re.split(f"[{APOSTROPHES}]", match[0])
            if before[0].isupper() and after[0].isupper():
                yield match[0]


def is_compound(word: str) -> bool:
    """Whether a word consists of others joined by hyphens or apostrophes."""
    return any(sign in word for sign in JOINERS)


def is_name(word: str) -> bool:
    """Whether a compound is a name such as O'Brien, joined by an apostrophe."""
    return any(sign in word for sign in APOSTROPHES)


def parts_of(compound: str) -> list[str]:
    """The words of a compound."""
    return re.split(f"[{re.escape(JOINERS)}]", compound)


def _segmenter() -> Callable[[str], list[str]]:
    """A function that divides Chinese, Japanese, Thai, Lao, Khmer and Burmese into words by ICU's dictionaries."""
    try:
        import icu  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise VocabgraftError(
            "--segment needs ICU, which is not installed; `pip install PyICU` (built with ICU's headers, such as "
            "libicu-dev), or leave --segment out"
        ) from error
    breaks: Any = icu.BreakIterator.createWordInstance(icu.Locale.getRoot())

    def segments(text: str) -> list[str]:
        # ICU's offsets count UTF-16 code units, of which a character outside the first plane has two.
        encoded = text.encode("utf-16-le")
        breaks.setText(text)
        ends = list(breaks)
        return [encoded[2 * start : 2 * end].decode("utf-16-le") for start, end in zip([0, *ends], ends, strict=False)]

    return segments
