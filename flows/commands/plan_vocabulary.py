"""Which words of a corpus are worth adding: a vocabulary ready for use, a table and a plot.

python -m flows.commands.plan_vocabulary --help
"""

import argparse
import csv
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from flows.commands.exit_code import exit_code
from vocabgraft.errors import VocabgraftError
from vocabgraft.planning.corpus import Part, find_files, split_files
from vocabgraft.planning.counts import WordCounts, count_words
from vocabgraft.planning.ranking import (
    LEAST_CONTRAST,
    Plan,
    PlanParams,
    least_special_count,
    plan_vocabulary,
    segmentations,
)
from vocabgraft.storage.artifacts import MANIFEST, new_folder, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.progress import Progress
    from tokenizers import Tokenizer

ROWS_SHOWN = 20
# Two processes of a million counters each, their forms and the merged counts stay under 1 GB together.
COUNTERS = 1_000_000


@dataclass(frozen=True)
class Corpus:
    """Parts of files and the columns of those that are tables."""

    parts: list[Part]
    columns: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True)
class Outcome:
    """All that is written: the plan, how many of its words are taken, and what was counted."""

    plan: Plan
    top: int
    counts: WordCounts
    background: WordCounts | None
    least_special_count: int | None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    return exit_code("plan_vocabulary", options.out, lambda: _tell(options))


def _tell(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    outcome = _run(options)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(_table(outcome))
    for line in _lines(outcome, options.out, time.perf_counter() - started):
        console.print(line, markup=False, highlight=False)


def draw(plan: Plan, top: int) -> "Figure":
    """Tokens saved against words added, with the point of diminishing returns and the words taken."""
    from matplotlib.figure import Figure

    saved = [0, *plan.cumulative_saved]
    shown = min(len(saved), 3 * max(top, plan.knee) + 1)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(shown), saved[:shown], color="tab:blue", label="all words worth adding")
    axes.axvline(plan.knee, color="tab:red", linestyle="--", label=f"diminishing returns: {plan.knee:,} words")
    axes.plot([plan.knee], [saved[plan.knee]], "o", color="tab:red")
    axes.axvline(top, color="tab:green", linestyle=":", label=f"in vocabulary.csv: {top:,} words")
    axes.set(xlabel="words added", ylabel="tokens of the corpus saved", xlim=(0, shown - 1), ylim=(0, None))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_title(f"{saved[-1]:,} tokens saved by all {len(plan.words):,} words")
    axes.legend(loc="lower right")
    return figure


def _run(options: argparse.Namespace) -> Outcome:
    _check_options(options)
    tokenizer, params = _base(options)
    known = _known_words(options.vocabulary)
    corpus = _corpus(options.corpus, options.column)
    background = None
    if options.background:
        background = _corpus(options.background, options.background_column or options.column)
    counts, background_counts = _count(corpus, background, tokenizer, options)
    against = None if background_counts is None else background_counts.counts
    plan = plan_vocabulary(tokenizer, counts.counts, params, against, known)
    least = None
    if against is not None:
        totals = sum(counts.counts.values()), sum(against.values())
        least = max(params.min_count, least_special_count(*totals, params.min_contrast))
    outcome = Outcome(plan, min(options.top, len(plan.words)), counts, background_counts, least)
    _write(outcome, tokenizer, options)
    return outcome


def _check_options(options: argparse.Namespace) -> None:
    for name in ("top", "processes", "counters"):
        if (seen := getattr(options, name)) < 1:
            raise VocabgraftError(f"--{name} is {seen}; allowed: 1 or more")
    out: Path = options.out
    if out.exists() and not (out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))):
        raise VocabgraftError(
            f"--out {out} is there and is no earlier plan, which would be replaced; name another folder"
        )


def _base(options: argparse.Namespace) -> tuple["Tokenizer", PlanParams]:
    from tasks.support.models import resolve_base
    from vocabgraft.config.params import load_params
    from vocabgraft.config.stages import BaseParams
    from vocabgraft.models.base import tokenizer_file
    from vocabgraft.tokens.tokenizer import load_raw_tokenizer

    limits = {"min_count": options.min_count, "min_contrast": options.min_contrast}
    if options.base is None:
        params = load_params()
        base, limits["max_characters"] = params.base, params.extend_tokenizer.max_token_characters
    else:
        base = BaseParams(model=options.base)
    folder, _ = resolve_base(base)
    return load_raw_tokenizer(tokenizer_file(folder)), PlanParams(**limits)


def _known_words(path: Path | None) -> list[str]:
    if path is None:
        return []
    from vocabgraft.data.raw_files import read_table

    return [token for token in read_table(path, ("token",))["token"] if token]


def _corpus(paths: Sequence[Path], columns: Sequence[str] | None) -> Corpus:
    chosen = tuple(columns or ("text",))
    return Corpus(split_files(find_files(paths), chosen), chosen)


def _count(
    corpus: Corpus, background: Corpus | None, tokenizer: "Tokenizer", options: argparse.Namespace
) -> tuple[WordCounts, WordCounts | None]:
    with progress_bar() as progress:
        counts = _count_one("corpus", corpus, tokenizer, options, progress)
        if background is None:
            return counts, None
        return counts, _count_one("background", background, tokenizer, options, progress)


def _count_one(
    name: str, corpus: Corpus, tokenizer: "Tokenizer", options: argparse.Namespace, progress: "Progress"
) -> WordCounts:
    task = progress.add_task(name, total=corpus.size)
    try:
        counted = count_words(
            corpus.parts,
            tokenizer,
            corpus.columns,
            options.processes,
            options.counters,
            lambda size: progress.advance(task, size),
            options.segment,
        )
    except VocabgraftError as error:
        raise VocabgraftError(f"{name}: {error}") from error
    progress.update(task, completed=corpus.size)
    return counted


@contextmanager
def progress_bar() -> Iterator["Progress"]:
    """A progress bar by bytes on standard error."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        yield progress


def _write(outcome: Outcome, tokenizer: "Tokenizer", options: argparse.Namespace) -> None:
    with new_folder(options.out) as folder:
        words = [[word.text, "word", ""] for word in outcome.plan.words[: outcome.top]]
        _write_csv(folder / "vocabulary.csv", ["token", "kind", "description"], words)
        _write_csv(folder / "plan.csv", PLAN_COLUMNS, _plan_rows(outcome, tokenizer))
        write_json(folder / "plan.json", _as_json(outcome, options))
        draw(outcome.plan, outcome.top).savefig(folder / "plan.png", dpi=150)


def _write_csv(path: Path, header: Sequence[str], rows: Any) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header])
        csv.writer(stream, lineterminator="\n").writerows(rows)


PLAN_COLUMNS = (
    "rank word count pieces segmentation tokens_saved tokens_saved_so_far share_of_tokens_saved_so_far "
    "background_count contrast in_vocabulary"
).split()


def _plan_rows(outcome: Outcome, tokenizer: "Tokenizer") -> Iterator[list[Any]]:
    words = outcome.plan.words
    pieces = segmentations(tokenizer, [word.text for word in words])
    for rank, (word, segmentation, so_far) in enumerate(
        zip(words, pieces, outcome.plan.cumulative_saved, strict=True), start=1
    ):
        share = _share(so_far, outcome.counts.tokens)
        contrast = None if word.contrast is None else round(word.contrast, 3)
        figures = [word.count, word.pieces, " ".join(segmentation), word.saved, so_far, round(share, 6)]
        yield [rank, word.text, *figures, word.background_count, contrast, "yes" if rank <= outcome.top else "no"]


def _as_json(outcome: Outcome, options: argparse.Namespace) -> dict[str, Any]:
    plan, counts = outcome.plan, outcome.counts
    saved = [0, *plan.cumulative_saved]
    return {
        "corpus": {"files": [str(path) for path in options.corpus], **_totals(counts)},
        "background": None
        if outcome.background is None
        else {"files": [str(path) for path in options.background], **_totals(outcome.background)},
        "counters": options.counters,
        "min_count": options.min_count,
        "min_contrast": options.min_contrast,
        "segment": options.segment,
        "least_count_of_a_word_that_the_background_lacks": outcome.least_special_count,
        "words_worth_adding": len(plan.words),
        "top": {"words": outcome.top, **_effect(saved[outcome.top], counts)},
        "knee": {"words": plan.knee, **_effect(saved[plan.knee], counts)},
        "all": {"words": len(plan.words), **_effect(saved[-1], counts)},
        "dropped": {
            reason: {"words": dropped.words, "examples": list(dropped.examples)}
            for reason, dropped in plan.dropped.items()
        },
    }


def _totals(counts: WordCounts) -> dict[str, Any]:
    return {
        "texts": counts.texts,
        "characters": counts.characters,
        "words": counts.words,
        "distinct_words_counted": len(counts.counts),
        "counts_too_low_by_at_most": counts.error,
        "skipped": {"name": 0, "identifier": 0, "number": 0} | dict(counts.skipped),
        "tokens_estimated": round(counts.tokens),
        "tokens_per_text_estimated": round(counts.tokens / counts.texts, 4),
        "texts_in_the_estimate": counts.sampled_texts,
    }


def _effect(saved: int, counts: WordCounts) -> dict[str, Any]:
    return {
        "tokens_saved": saved,
        "share_of_tokens_saved": round(_share(saved, counts.tokens), 6),
        "tokens_per_text_after": round((counts.tokens - saved) / counts.texts, 4),
    }


def _share(saved: int, tokens: float) -> float:
    return saved / tokens if tokens else 0.0


def _table(outcome: Outcome) -> Table:
    contrasted = outcome.background is not None
    table = Table(title=f"the first {min(ROWS_SHOWN, outcome.top)} words", title_justify="left")
    table.add_column("word", overflow="fold")
    for heading in ("pieces", "uses", "tokens saved", "saved so far", *(("in background", "z") if contrasted else ())):
        table.add_column(heading, justify="right")
    shown = zip(outcome.plan.words[: min(ROWS_SHOWN, outcome.top)], outcome.plan.cumulative_saved, strict=False)
    for word, so_far in shown:
        share = f"{100 * _share(so_far, outcome.counts.tokens):.2f} %"
        figures = [f"{word.pieces}", f"{word.count:,}", f"{word.saved:,}", share]
        table.add_row(
            word.text, *figures, *([f"{word.background_count:,}", f"{word.contrast:.1f}"] if contrasted else [])
        )
    return table


def _lines(outcome: Outcome, out: Path, seconds: float) -> list[str]:
    counts, plan = outcome.counts, outcome.plan
    saved = [0, *plan.cumulative_saved]
    before, after = counts.tokens / counts.texts, (counts.tokens - saved[outcome.top]) / counts.texts
    error = f"too low by at most {counts.error:,}" if counts.error else "exact"
    return [
        f"{counts.texts:,} texts, {counts.words:,} words, {len(counts.counts):,} different ones counted ({error}); "
        f"{len(plan.words):,} worth adding; {seconds:.1f} s",
        f"tokens per text with the first {outcome.top:,}: {before:.2f} -> {after:.2f} "
        f"({100 * _share(saved[outcome.top], counts.tokens):.2f} % saved)",
        f"returns diminish after {plan.knee:,} words "
        f"({100 * _share(saved[plan.knee], counts.tokens):.2f} % of the tokens saved)",
        *_background_lines(outcome),
        f"written: {out}/vocabulary.csv, plan.csv, plan.json, plan.png",
    ]


def _background_lines(outcome: Outcome) -> list[str]:
    if outcome.least_special_count is None or outcome.background is None:
        return []
    ratio = outcome.counts.words / max(outcome.background.words, 1)
    advice = (
        f"; the background is {ratio:.0f} times smaller than the corpus, a larger one finds more" if ratio > 3 else ""
    )
    return [f"a word that the background lacks is taken from {outcome.least_special_count:,} uses on{advice}"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.commands.plan_vocabulary",
        description="Rank the words of a corpus by the tokens that adding them would save.",
    )
    add = parser.add_argument
    add(
        "corpus", nargs="+", type=Path, help="files or folders: .txt (a text a line), .csv, .tsv, .jsonl, .parquet, .gz"
    )
    add(
        "--background",
        nargs="+",
        type=Path,
        metavar="CORPUS",
        help="a general corpus; words must be special against it",
    )
    add("--column", action="append", metavar="NAME", help="column of the texts of a table (default: text); may repeat")
    add(
        "--background-column",
        action="append",
        metavar="NAME",
        help="the same for the background (default: as --column)",
    )
    add("--top", type=int, default=200, help="words in vocabulary.csv (default: 200)")
    add("--min-count", type=int, default=5, help="fewest occurrences of a word (default: 5)")
    add("--min-contrast", type=float, default=LEAST_CONTRAST, help="least z-score (default: %(default)s)")
    add("--vocabulary", type=Path, metavar="FILE", help="a vocabulary file; its words are left out")
    add("--base", metavar="MODEL", help="base model, as in params.yaml (default: that of params.yaml)")
    add("--segment", action="store_true", help="cut Chinese, Japanese, Thai, Lao, Khmer and Burmese into words by ICU")
    add("--processes", type=int, default=os.cpu_count() or 1, help="processes that count (default: all cores)")
    add("--counters", type=int, default=COUNTERS, help=f"different words counted at a time (default: {COUNTERS:,})")
    add(
        "--out",
        type=Path,
        default=Path("reports/plan"),
        help="folder to write, replaced as a whole (default: reports/plan)",
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
