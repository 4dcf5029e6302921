"""`vocabgraft vocab plan`: ranks the words of a corpus; writes a vocabulary, a table and a plot."""

import csv
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from rich.text import Text
from typer import Option

from flows.commands import output
from flows.commands.output import DEFAULT_BASE, MODEL, PARAMS_OR_DEFAULT, Json, Output, Quiet, progress_bar
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
# Two processes with a million counters each and the merged counts stay below 1 GB together.
COUNTERS = 1_000_000


@dataclass(frozen=True)
class Request:
    """The command's options."""

    corpus: Sequence[Path]
    columns: tuple[str, ...]
    background: Sequence[Path]
    background_columns: tuple[str, ...]
    top: int
    min_count: int
    min_contrast: float
    vocabulary: Path | None
    base: str | None
    processes: int
    counters: int
    segment: bool
    out: Path


@dataclass(frozen=True)
class Corpus:
    """Parts of files, and the text columns of tables."""

    parts: list[Part]
    columns: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True)
class Outcome:
    """The plan, the number of words in vocabulary.csv, and the counts."""

    plan: Plan
    top: int
    counts: WordCounts
    background: WordCounts | None
    least_special_count: int | None


def plan_words(
    corpus: output.Corpus,
    background: Annotated[
        list[Path] | None,
        Option(metavar="CORPUS", help="A general corpus; words must be more frequent than in it. Repeatable."),
    ] = None,
    column: output.Columns = None,
    background_column: Annotated[
        list[str] | None, Option(metavar="NAME", help="Column of the background. Default: as --column.")
    ] = None,
    top: Annotated[int, Option(metavar="N", min=1, help="Words in vocabulary.csv.")] = 200,
    min_count: Annotated[int, Option(metavar="N", help="Fewest occurrences of a word.")] = 5,
    min_contrast: Annotated[float, Option(metavar="Z", help="Least z-score against the background.")] = LEAST_CONTRAST,
    vocabulary: Annotated[Path | None, Option(metavar="FILE", help="A vocabulary whose words are skipped.")] = None,
    base: Annotated[str | None, Option(metavar="MODEL", help=f"Base: {MODEL}. {PARAMS_OR_DEFAULT}.")] = None,
    processes: Annotated[
        int | None, Option(metavar="N", min=1, help="Processes that count. Default: one per core.")
    ] = None,
    counters: Annotated[
        int, Option(metavar="N", min=1, help="Distinct words counted at a time; limits the memory.")
    ] = COUNTERS,
    segment: Annotated[
        bool,
        Option("--segment", help="Split Chinese, Japanese, Thai, Lao, Khmer and Burmese into words with ICU."),
    ] = False,
    out: Annotated[Path, Option(help="Folder to write, replaced as a whole.")] = Path("reports/plan"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rank the words of a corpus by the tokens that adding them saves."""
    columns = tuple(column or ("text",))
    request = Request(
        corpus=corpus,
        columns=columns,
        background=background or (),
        background_columns=tuple(background_column or columns),
        top=top,
        min_count=min_count,
        min_contrast=min_contrast,
        vocabulary=vocabulary,
        base=base,
        processes=processes or os.cpu_count() or 1,
        counters=counters,
        segment=segment,
        out=out,
    )
    started = time.perf_counter()
    shown, outcome = Output(as_json, quiet), _run(request)
    shown.show(_table(outcome))
    for line in _lines(outcome, request, time.perf_counter() - started):
        shown.line(line)
    shown.document(_as_json(outcome, request))


def draw(plan: Plan, top: int) -> "Figure":
    """Plot tokens saved over words added, with the point of diminishing returns and the words in vocabulary.csv."""
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


def _run(request: Request) -> Outcome:
    _check_out(request.out)
    tokenizer, params = _base(request)
    known = _known_words(request.vocabulary)
    corpus = _corpus(request.corpus, request.columns)
    background = None
    if request.background:
        background = _corpus(request.background, request.background_columns)
    counts, background_counts = _count(corpus, background, tokenizer, request)
    against = None if background_counts is None else background_counts.counts
    plan = plan_vocabulary(tokenizer, counts.counts, params, against, known)
    least = None
    if against is not None:
        totals = sum(counts.counts.values()), sum(against.values())
        least = max(params.min_count, least_special_count(*totals, params.min_contrast))
    outcome = Outcome(plan, min(request.top, len(plan.words)), counts, background_counts, least)
    _write(outcome, tokenizer, request)
    return outcome


def _check_out(out: Path) -> None:
    if out.exists() and not (out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))):
        raise VocabgraftError(
            f"--out {out} exists and is not an earlier plan (only a plan is replaced); name another folder"
        )


def _base(request: Request) -> tuple["Tokenizer", PlanParams]:
    from tasks.support.models import model_folder, resolve_base
    from vocabgraft.config.params import PARAMS_FILE, load_params
    from vocabgraft.tokens.tokenizer import load_base_tokenizer

    limits: dict[str, Any] = {"min_count": request.min_count, "min_contrast": request.min_contrast}
    if request.base is None and PARAMS_FILE.exists():
        params = load_params()
        folder, limits["max_characters"] = resolve_base(params.base)[0], params.extend_tokenizer.max_token_characters
    else:
        folder = model_folder("--base", request.base or DEFAULT_BASE)
    return load_base_tokenizer(folder), PlanParams(**limits)


def _known_words(path: Path | None) -> list[str]:
    if path is None:
        return []
    from vocabgraft.data.raw_files import read_table

    return [token for token in read_table(path, ("token",))["token"] if token]


def _corpus(paths: Sequence[Path], columns: tuple[str, ...]) -> Corpus:
    return Corpus(split_files(find_files(paths), columns), columns)


def _count(
    corpus: Corpus, background: Corpus | None, tokenizer: "Tokenizer", request: Request
) -> tuple[WordCounts, WordCounts | None]:
    with progress_bar() as progress:
        counts = _count_one("corpus", corpus, tokenizer, request, progress)
        if background is None:
            return counts, None
        return counts, _count_one("background", background, tokenizer, request, progress)


def _count_one(name: str, corpus: Corpus, tokenizer: "Tokenizer", request: Request, progress: "Progress") -> WordCounts:
    task = progress.add_task(name, total=corpus.size)
    try:
        counted = count_words(
            corpus.parts,
            tokenizer,
            corpus.columns,
            request.processes,
            request.counters,
            lambda size: progress.advance(task, size),
            request.segment,
        )
    except VocabgraftError as error:
        raise VocabgraftError(f"{name}: {error}") from error
    progress.update(task, completed=corpus.size)
    return counted


def _write(outcome: Outcome, tokenizer: "Tokenizer", request: Request) -> None:
    with new_folder(request.out) as folder:
        words = [[word.text, "word", ""] for word in outcome.plan.words[: outcome.top]]
        _write_csv(folder / "vocabulary.csv", ["token", "kind", "description"], words)
        _write_csv(folder / "plan.csv", PLAN_COLUMNS, _plan_rows(outcome, tokenizer))
        write_json(folder / "plan.json", _as_json(outcome, request))
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


def _as_json(outcome: Outcome, request: Request) -> dict[str, Any]:
    plan, counts = outcome.plan, outcome.counts
    saved = [0, *plan.cumulative_saved]
    return {
        "corpus": {"files": [str(path) for path in request.corpus], **_totals(counts)},
        "background": None
        if outcome.background is None
        else {"files": [str(path) for path in request.background], **_totals(outcome.background)},
        "counters": request.counters,
        "min_count": request.min_count,
        "min_contrast": request.min_contrast,
        "segment": request.segment,
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
    for heading in (
        "subword tokens",
        "uses",
        "tokens saved",
        "saved so far",
        *(("in background", "z") if contrasted else ()),
    ):
        table.add_column(heading, justify="right")
    shown = zip(outcome.plan.words[: min(ROWS_SHOWN, outcome.top)], outcome.plan.cumulative_saved, strict=False)
    for word, so_far in shown:
        share = f"{100 * _share(so_far, outcome.counts.tokens):.2f} %"
        figures = [f"{word.pieces}", f"{word.count:,}", f"{word.saved:,}", share]
        table.add_row(
            Text(word.text), *figures, *([f"{word.background_count:,}", f"{word.contrast:.1f}"] if contrasted else [])
        )
    return table


def _lines(outcome: Outcome, request: Request, seconds: float) -> list[str]:
    out = request.out
    # `vocabgraft new` takes one file.
    corpus = request.corpus[0] if len(request.corpus) == 1 else "CORPUS"
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
        f"next: delete the words that you do not want from {out}/vocabulary.csv, then "
        f"vocabgraft new FOLDER --vocabulary {out}/vocabulary.csv --corpus {corpus}",
    ]


def _background_lines(outcome: Outcome) -> list[str]:
    if outcome.least_special_count is None or outcome.background is None:
        return []
    ratio = outcome.counts.words / max(outcome.background.words, 1)
    advice = (
        f"; the background is {ratio:.0f} times smaller than the corpus; a larger one finds more words"
        if ratio > 3
        else ""
    )
    return [f"a word that the background lacks needs at least {outcome.least_special_count:,} uses{advice}"]
