"""`vocabgraft index impact`: the share of an index's vectors that stay valid with the extended tokenizer."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from rich.text import Text
from typer import Option

from flows.commands.output import Columns, Corpus, Json, Output, Quiet, progress_bar
from vocabgraft.errors import VocabgraftError
from vocabgraft.index.impact import IndexImpact, measure_impact, without_new_tokens
from vocabgraft.planning.corpus import Part, find_files, read_blocks, split_files
from vocabgraft.storage.artifacts import require_artifact, write_json

EXTENDING_STAGE = "extend_tokenizer"
ROWS_SHOWN = 20


def index_impact(
    corpus: Corpus,
    column: Columns = None,
    tokenizer: Annotated[
        Path | None, Option(metavar="FOLDER", help="Extended tokenizer. Default: that of stage extend_tokenizer.")
    ] = None,
    out: Annotated[Path, Option(help="JSON file to write.")] = Path("reports/index_impact.json"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show which share of an index stays valid with the extended tokenizer.

    This holds for method tokens only; any other method changes every vector.
    """
    impact = _measure(corpus, tuple(column or ("text",)), tokenizer)
    report = _as_json(impact, corpus)
    _write(out, report)
    output = Output(as_json, quiet)
    output.show(_figures(impact))
    output.show(_uses(impact))
    output.line(f"written: {out}")
    output.document(report)


def _measure(corpus: Sequence[Path], columns: tuple[str, ...], tokenizer: Path | None) -> IndexImpact:
    from vocabgraft.tokens.tokenizer import load_base_tokenizer, read_tokens

    folder = tokenizer or _tokenizer_of_the_project()
    tokens = read_tokens(require_artifact(folder).parent / "tokens.json")
    extended = load_base_tokenizer(folder)
    parts = split_files(find_files(corpus), columns)
    impact = measure_impact(without_new_tokens(extended, tokens), extended, tokens, _texts(parts, columns))
    if not impact.texts:
        raise VocabgraftError("the corpus has only blank texts; name files with text")
    return impact


def _tokenizer_of_the_project() -> Path:
    from flows.engine.dag import read_dag

    outs = [stage.outs[0] for stage in read_dag(Path()) if stage.name == EXTENDING_STAGE]
    if not outs:
        raise VocabgraftError(f"dvc.yaml has no stage {EXTENDING_STAGE}; name the folder with --tokenizer")
    return outs[0] / "tokenizer"


def _texts(parts: Sequence[Part], columns: Sequence[str]) -> Iterator[list[str]]:
    with progress_bar() as progress:
        task = progress.add_task("corpus", total=sum(part.size for part in parts))
        for part in parts:
            for block in read_blocks(part, columns):
                yield block.texts
                progress.advance(task, block.size)


def _as_json(impact: IndexImpact, corpus: Sequence[Path]) -> dict[str, Any]:
    return {
        "corpus": [str(path) for path in corpus],
        "texts": impact.texts,
        "texts_with_new_token": impact.texts_with_new_token,
        "share_of_vectors_valid": round(impact.share_valid, 6),
        "tokens_per_text_before": round(impact.tokens_before / impact.texts, 4),
        "tokens_per_text_after": round(impact.tokens_after / impact.texts, 4),
        "uses": impact.uses,
    }


def _write(path: Path, report: dict[str, Any]) -> None:
    if path.is_dir():
        raise VocabgraftError(f"--out {path} is a folder; name a file, such as {path / 'index_impact.json'}")
    write_json(path, report)


def _figures(impact: IndexImpact) -> Table:
    table = Table(title="an index of this corpus, if only new tokens were trained", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_row("texts", f"{impact.texts:,}")
    table.add_row("texts with a new token, to encode again", f"{impact.texts_with_new_token:,}")
    table.add_row("stored vectors that stay valid", f"{100 * impact.share_valid:.2f} %")
    table.add_row("tokens per text before", f"{impact.tokens_before / impact.texts:.2f}")
    table.add_row("tokens per text after", f"{impact.tokens_after / impact.texts:.2f}")
    table.caption = "with any method but tokens, every text must be encoded again"
    return table


def _uses(impact: IndexImpact) -> Table:
    used = sorted(impact.uses.items(), key=lambda item: (-item[1], item[0]))
    unused = sum(texts == 0 for _, texts in used)
    table = Table(title=f"most used new tokens ({unused} of {len(used)} in no text)", title_justify="left")
    table.add_column("token", overflow="fold")
    for heading in ("texts", "share"):
        table.add_column(heading, justify="right")
    for token, texts in used[:ROWS_SHOWN]:
        if texts:
            table.add_row(Text(token), f"{texts:,}", f"{100 * texts / impact.texts:.2f} %")
    return table
