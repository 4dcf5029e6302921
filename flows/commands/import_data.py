"""Raw data for validate_data out of what others publish: ConceptNet 5, ontologies in OBO and SKOS, plain triples.

python -m flows.commands.import_data --help
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from vocabgraft.config.params import load_params
from vocabgraft.config.stages import BaseParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.importers.conceptnet import Selection, read_conceptnet
from vocabgraft.importers.obo import DEFAULT_SCOPES, SCOPES, read_obo
from vocabgraft.importers.ontology import Ontology, ontology_rows
from vocabgraft.importers.rows import (
    CONTEXTS,
    PAIRS,
    TRIPLES,
    VOCABULARY,
    ImportedRows,
    Limits,
    check_absent,
    params_section,
    write_raw,
)
from vocabgraft.importers.skos import read_skos
from vocabgraft.importers.streams import Report, check_source
from vocabgraft.importers.triple_files import TripleSelection, read_triples

if TYPE_CHECKING:
    from tokenizers import Tokenizer

RAW = Path("data/raw")
FILES = {
    "conceptnet": (TRIPLES, VOCABULARY),
    "obo": (VOCABULARY, TRIPLES, PAIRS, CONTEXTS),
    "skos": (VOCABULARY, TRIPLES, PAIRS, CONTEXTS),
    "triples": (TRIPLES, VOCABULARY),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        # Before the reading, which may take minutes.
        check_source(options.file)
        check_absent(options.out, FILES[options.kind], options.overwrite)
        rows = _read(options)
        written = write_raw(rows, options.out, options.overwrite)
    except VocabgraftError as error:
        print(f"import_data: {error}", file=sys.stderr)
        return 1
    console.print(_table(written, options.out))
    for reason, count in sorted(rows.left_out.items(), key=lambda item: -item[1]):
        console.print(f"left out: {count:,} for {reason}", markup=False, highlight=False)
    print(_advice(rows, options.out, options.min_uses))
    return 0


def _read(options: argparse.Namespace) -> ImportedRows:
    limits = Limits(min_uses=options.min_uses)
    if options.kind == "conceptnet":
        selection = Selection(options.language, options.min_weight, _names(options.relations))
        with _progress(options.file) as report:
            return read_conceptnet(options.file, selection, limits, report)
    if options.kind == "triples":
        columns = tuple(name.strip() for name in options.columns.split(",")) if options.columns else ()
        chosen = TripleSelection(columns, _names(options.relations), options.min_weight)
        with _progress(options.file) as report:
            return read_triples(options.file, chosen, limits, report)
    limits = Limits(options.min_pieces, options.min_uses, options.max_tokens)
    base = _base_tokenizer(options.base)
    ontology = _read_ontology(options)
    try:
        return ontology_rows(ontology, base, limits)
    except VocabgraftError as error:
        raise VocabgraftError(f"{options.file}: {error}") from error


def _read_ontology(options: argparse.Namespace) -> Ontology:
    with _progress(options.file) as report:
        if options.kind == "obo":
            return read_obo(options.file, frozenset(name.upper() for name in _names(options.scopes)), report)
        return read_skos(options.file, options.language, report)


def _base_tokenizer(model: str | None) -> "Tokenizer":
    from tasks.support.models import resolve_base
    from tasks.support.stage import switch_telemetry_off
    from vocabgraft.models.base import tokenizer_file
    from vocabgraft.tokens.tokenizer import load_raw_tokenizer

    switch_telemetry_off()
    folder, _ = resolve_base(load_params().base if model is None else BaseParams(model=model))
    return load_raw_tokenizer(tokenizer_file(folder))


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


@contextmanager
def _progress(path: Path) -> Iterator[Report]:
    """A bar of the bytes read, on standard error, where that is a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"reading {path.name}", total=path.stat().st_size)
        yield lambda count: bar.update(task, advance=count)


def _table(written: dict[str, int], folder: Path) -> Table:
    table = Table(title=f"written to {folder}", title_justify="left")
    table.add_column("file")
    table.add_column("rows", justify="right")
    for name, rows in written.items():
        table.add_row(name, f"{rows:,}")
    return table


def _advice(rows: ImportedRows, folder: Path, min_uses: int) -> str:
    """What to put into params.yaml, as YAML with comments."""
    import yaml

    inside = _inside_raw(folder)
    section = params_section(rows, inside or Path(folder.name), min_uses).model_dump(exclude_none=True)
    lines = ["# put this into params.yaml in place of its section validate_data:"]
    if inside is None:
        lines.append(f"# (move {folder} into {RAW} first: stages read files in there only)")
    lines.append(yaml.safe_dump({"validate_data": section}, sort_keys=False).rstrip())
    if "terms" not in {dataset["name"] for dataset in section["datasets"]}:
        lines += ["# and, in register_model.gates, since there is no dataset terms:", "# benefit: relations.all.mrr"]
    return "\n".join(lines)


def _inside_raw(folder: Path) -> Path | None:
    try:
        return folder.resolve().relative_to(RAW.resolve())
    except ValueError:
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.commands.import_data",
        description="Turn a published knowledge graph or ontology into raw files for stage validate_data.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    conceptnet = kinds.add_parser("conceptnet", help="assertions of ConceptNet 5, gzip CSV, to triples and relations")
    _add_shared(conceptnet)
    conceptnet.add_argument("--language", default="en", help="code as in /c/en/; default: %(default)s")
    conceptnet.add_argument("--min-weight", type=float, default=1.0, help="default: %(default)s")
    conceptnet.add_argument(
        "--relations", default="", metavar="NAMES", help="such as IsA,UsedFor; default: all but ExternalURL"
    )
    obo = kinds.add_parser("obo", help="an ontology in OBO 1.2 or 1.4 to words, pairs, triples and contexts")
    _add_shared(obo)
    _add_words(obo)
    obo.add_argument(
        "--scopes",
        default=",".join(sorted(DEFAULT_SCOPES)),
        help=f"of the synonyms to take, out of {','.join(SCOPES)}; default: %(default)s",
    )
    skos = kinds.add_parser("skos", help="a thesaurus in SKOS (.rdf, .xml, .nt, .ttl) to the same")
    _add_shared(skos)
    _add_words(skos)
    skos.add_argument("--language", default="en", help="tag as in xml:lang; default: %(default)s")
    triples = kinds.add_parser("triples", help="a plain file of triples (.tsv, .txt, .csv) to triples and relations")
    _add_shared(triples)
    triples.add_argument(
        "--columns",
        metavar="NAMES",
        help="such as relation,head,tail,weight in the order of the file, - for one that is not read; default: by its "
        "first line",
    )
    triples.add_argument("--relations", default="", metavar="NAMES", help="such as IsA,UsedFor; default: all")
    triples.add_argument("--min-weight", type=float, default=-math.inf, help="of the column weight; default: any")
    return parser


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, default=RAW / "imported", help="folder; default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="write over files that are there")
    parser.add_argument(
        "--min-uses",
        type=int,
        default=Limits.min_uses,
        help="training texts that a new token must be in; default: %(default)s",
    )


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", metavar="MODEL", help="as base.model in params.yaml, which is the default")
    parser.add_argument(
        "--min-pieces",
        type=int,
        default=Limits.min_pieces,
        help="pieces into which the base cuts a word worth adding; default: %(default)s",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=Limits.max_tokens,
        help="new tokens at most, the most used words first; default: %(default)s",
    )


if __name__ == "__main__":
    raise SystemExit(main())
