"""The Chemical Methods Ontology as a benchmark: synonyms of held-out concepts against the names of all concepts.

The files are those of rsc-ontologies/rsc-cmo as tables: definitions.tsv (id, name, definition) and
synonyms_chmo_only.tsv (id, name, synonym, scope). They are not part of the project.
"""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from vocabgraft.errors import VocabgraftError
from vocabgraft.tokens.new_token import NewToken
from vocabgraft.tokens.tokenizer import normalised

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_DATA = Path(__file__).parent.parent.parent / "shared" / "data"
Array = np.ndarray[Any, np.dtype[Any]]
WORD = re.compile(r"[^\W\d_]{3,}")
LEAST_PIECES, LEAST_USES = 3, 4


@dataclass(frozen=True)
class Concept:
    """A term in use: its name, definition and synonyms."""

    name: str
    definition: str
    synonyms: tuple[str, ...]

    @property
    def texts(self) -> list[str]:
        """All texts about it."""
        return [self.name, *self.synonyms, *([self.definition] if self.definition else [])]


@dataclass(frozen=True)
class Chmo:
    """The ontology with its concepts split into train, validation and test by a hash with a seed."""

    train: list[Concept]
    validation: list[Concept]
    test: list[Concept]
    names: list[str]

    @property
    def training_texts(self) -> list[str]:
        """Every distinct text of the training concepts."""
        return list(dict.fromkeys(text for concept in self.train for text in concept.texts))

    def queries(self, concepts: Sequence[Concept]) -> tuple[list[str], list[int]]:
        """Synonyms of the concepts that are not names themselves, and the index of each concept's name in `names`."""
        place = {name: number for number, name in enumerate(self.names)}
        known = {name.casefold() for name in self.names}
        pairs = [
            (synonym, place[concept.name])
            for concept in concepts
            for synonym in concept.synonyms
            if synonym.casefold() not in known
        ]
        return [query for query, _ in pairs], [answer for _, answer in pairs]


def load_chmo(data: Path, seed: int, validation: float = 0.1, test: float = 0.2) -> Chmo:
    """Read the tables and split the concepts.

    Raises:
        VocabgraftError: when the tables are missing.
    """
    concepts = _read(data / "chmo")
    splits: dict[str, list[Concept]] = {"train": [], "validation": [], "test": []}
    for concept in concepts:
        digest = hashlib.sha256(f"{seed}:{concept.name}".encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        splits["test" if share < test else "validation" if share < test + validation else "train"].append(concept)
    return Chmo(splits["train"], splits["validation"], splits["test"], [concept.name for concept in concepts])


def new_words(
    chmo: Chmo, base: "Tokenizer", least_pieces: int = LEAST_PIECES, least_uses: int = LEAST_USES
) -> list[NewToken]:
    """Words of the training concepts with enough subword tokens in the base and enough uses in their texts."""
    uses = Counter(word for text in chmo.training_texts for word in {found.casefold() for found in WORD.findall(text)})
    # A word is one token in every case and accent that the base normalizes away.
    folded = {normalised(base, word): word for word, count in sorted(uses.items()) if count >= least_uses}
    often = sorted(folded.values())
    encodings = base.encode_batch(often, add_special_tokens=False)
    return [
        NewToken(word, "word", "")
        for word, encoding in zip(often, encodings, strict=True)
        if len(encoding.ids) >= least_pieces
    ]


def load_sts(data: Path) -> tuple[list[str], list[str], list[float]]:
    """STS-B dev: first sentences, second sentences, scores from 0 to 5."""
    path = data / "stsb-dev" / "stsb-en-dev.csv"
    with _opened(path) as stream:
        rows = list(csv.reader(stream))
    return [row[0] for row in rows], [row[1] for row in rows], [float(row[2]) for row in rows]


def ranks_of(queries: Array, documents: Array, answers: Sequence[int]) -> Array:
    """Rank (1 is best) of each query's answer among the documents, ties at their mean: shape (queries,)."""
    scores = queries @ documents.T
    right = scores[np.arange(len(scores)), list(answers)][:, None]
    found: Array = (scores > right).sum(axis=1) + 0.5 * ((scores == right).sum(axis=1) - 1) + 1
    return found


def paired_interval(values: Array, seed: int = 0, samples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of paired differences."""
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(samples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _read(folder: Path) -> list[Concept]:
    synonyms: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for row in _rows(folder / "synonyms_chmo_only.tsv"):
        names[row["id"]] = row["name"]
        synonyms.setdefault(row["id"], []).append(row["synonym"])
    definitions = {}
    for row in _rows(folder / "definitions.tsv"):
        names[row["id"]] = row["name"]
        definitions[row["id"]] = row["definition"]
    # Two concepts may share a name; they are one document.
    merged: dict[str, Concept] = {}
    for key in sorted(names):
        name, own = names[key], tuple(dict.fromkeys(synonyms.get(key, [])))
        before = merged.get(name, Concept(name, "", ()))
        merged[name] = Concept(name, before.definition or definitions.get(key, ""), (*before.synonyms, *own))
    return list(merged.values())


def _rows(path: Path) -> list[dict[str, str]]:
    with _opened(path) as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def _opened(path: Path) -> TextIO:
    if not path.is_file():
        raise VocabgraftError(f"{path} is missing; give the folder that holds chmo/ and stsb-dev/ with --data")
    return path.open(encoding="utf-8", newline="")
