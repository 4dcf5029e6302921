"""A fast filter for texts that may contain one of many words: no false negatives, some false positives."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# These keep spaces and never look beyond one, so the parts between spaces can be normalized separately.
SPACEWISE = frozenset(("BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"))
REMEMBERED_FORMS = 1 << 19


@dataclass
class WordFilter:
    """Looks for words in normalized texts, and for other words in raw texts.

    Normalization takes most of the time. The parts between spaces repeat across texts, so each is checked once if the
    normalizer allows it: 200,000 texts of 72 characters then take a tenth of the time.

    Attributes:
        normalizer: the tokenizer's, or None.
        in_normalised: finds words in a normalized text.
        in_raw: finds words in a raw text.
        spacewise: whether the parts between spaces may be checked separately.
        seen, holding: the checked parts, and those in which a word was found.
    """

    normalizer: Any
    in_normalised: "Tokenizer"
    in_raw: "Tokenizer"
    spacewise: bool
    seen: set[str] = field(default_factory=set)
    holding: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, tokenizer: "Tokenizer", words: Collection[str], raw: Collection[str]) -> "WordFilter | None":
        """A filter for `words` in texts as the tokenizer normalizes them, and for `raw` words in texts as written.

        None if a word is only spaces, which every text may hold.
        """
        spacewise = all(name in SPACEWISE for name in _normalisers(tokenizer))
        # A word that spans spaces is found by its longest part without a space.
        parts = [{max(word.split(" "), key=len) if spacewise else word for word in kind} for kind in (words, raw)]
        if any(not part.strip() for part in (*parts[0], *parts[1])):
            return None
        return cls(tokenizer.normalizer, _finder(parts[0]), _finder(parts[1]), spacewise)

    def places(self, texts: Sequence[str]) -> list[int]:
        """The indices of the texts that may hold a word, ascending."""
        if not self.spacewise:
            return [place for place, held in enumerate(self._look(texts)) if held]
        forms = [text.split(" ") for text in texts]
        if len(self.seen) > REMEMBERED_FORMS:
            self.seen.clear()
            self.holding.clear()
        unknown = list(set(chain.from_iterable(forms)) - self.seen)
        self.seen.update(unknown)
        self.holding.update(form for form, held in zip(unknown, self._look(unknown), strict=True) if held)
        return [place for place, line in enumerate(forms) if not self.holding.isdisjoint(line)]

    def _look(self, texts: Sequence[str]) -> list[bool]:
        read = texts if self.normalizer is None else [str(self.normalizer.normalize_str(text)) for text in texts]
        found = zip(_holds(self.in_normalised, read), _holds(self.in_raw, texts), strict=True)
        return [normal or raw for normal, raw in found]


def _normalisers(tokenizer: "Tokenizer") -> list[str]:
    """The types of a tokenizer's normalizers; a sequence is listed one by one."""
    stored = json.loads(tokenizer.to_str())["normalizer"]
    if stored is None:
        return []
    return [entry["type"] for entry in stored["normalizers"]] if stored["type"] == "Sequence" else [stored["type"]]


def _finder(words: Collection[str]) -> "Tokenizer":
    """The library's own search for many words at once, and nothing else: a text without any word is one token, 0."""
    from tokenizers import AddedToken, Tokenizer, models

    finder = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
    finder.add_tokens([AddedToken(word, normalized=False) for word in sorted(words)])
    return finder


def _holds(finder: "Tokenizer", texts: Sequence[str]) -> list[bool]:
    return [any(encoding.ids) for encoding in finder.encode_batch_fast(list(texts), add_special_tokens=False)]
