"""What the extended tokenizer does to an existing index: the share of its vectors that stay valid.

python -m flows.commands.index_impact --help
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.commands.exit_code import exit_code
from flows.commands.plan_vocabulary import progress_bar
from vocabgraft.errors import VocabgraftError
from vocabgraft.index.impact import IndexImpact, measure_impact, without_new_tokens
from vocabgraft.planning.corpus import Part, find_files, read_blocks, split_files
from vocabgraft.storage.artifacts import require_artifact, write_json

EXTENDING_STAGE = "extend_tokenizer"
ROWS_SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    return exit_code("index_impact", options.out, lambda: _tell(options))


def _tell(options: argparse.Namespace) -> None:
    impact = _measure(options)
    _write(options.out, _as_json(impact, options))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(_figures(impact))
    console.print(_uses(impact))
    console.print(f"written: {options.out}", markup=False, highlight=False)


def _measure(options: argparse.Namespace) -> IndexImpact:
    from vocabgraft.models.base import tokenizer_file
    from vocabgraft.tokens.tokenizer import load_raw_tokenizer, read_tokens

    folder = options.tokenizer or _tokenizer_of_the_project()
    tokens = read_tokens(require_artifact(folder).parent / "tokens.json")
    extended = load_raw_tokenizer(tokenizer_file(folder))
    columns = tuple(options.column or ("text",))
    parts = split_files(find_files(options.corpus), columns)
    impact = measure_impact(without_new_tokens(extended, tokens), extended, tokens, _texts(parts, columns))
    if not impact.texts:
        raise VocabgraftError("the corpus holds blank texts only; name files with text in them")
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


def _as_json(impact: IndexImpact, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "corpus": [str(path) for path in options.corpus],
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
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        # Whole or not at all.
        write_json(Path(folder) / path.name, report)
        (Path(folder) / path.name).replace(path)


def _figures(impact: IndexImpact) -> Table:
    table = Table(title="an index of this corpus, after the new tokens alone", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_row("texts", f"{impact.texts:,}")
    table.add_row("texts with a new token, to encode again", f"{impact.texts_with_new_token:,}")
    table.add_row("stored vectors that stay valid", f"{100 * impact.share_valid:.2f} %")
    table.add_row("tokens per text before", f"{impact.tokens_before / impact.texts:.2f}")
    table.add_row("tokens per text after", f"{impact.tokens_after / impact.texts:.2f}")
    table.caption = "a model that another method than tokens has trained needs every text encoded again"
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
            table.add_row(token, f"{texts:,}", f"{100 * texts / impact.texts:.2f} %")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.commands.index_impact",
        description="Say which stored vectors of a corpus stay valid with the extended tokenizer.",
    )
    add = parser.add_argument
    add(
        "corpus", nargs="+", type=Path, help="files or folders: .txt (a text a line), .csv, .tsv, .jsonl, .parquet, .gz"
    )
    add("--column", action="append", metavar="NAME", help="column of the texts of a table (default: text); may repeat")
    add(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help="extended tokenizer (default: that of the stage extend_tokenizer)",
    )
    add("--out", type=Path, default=Path("reports/index_impact.json"), help="default: reports/index_impact.json")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
