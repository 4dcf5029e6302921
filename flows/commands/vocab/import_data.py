"""`vocabgraft vocab import`: raw data for validate_data from ConceptNet 5, OBO, SKOS and plain triples."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.table import Table
from typer import Argument, Option

from flows.commands.output import DEFAULT_BASE, MODEL, PARAMS_OR_DEFAULT, Json, Output, Quiet, progress_bar
from vocabgraft.config.params import PARAMS_FILE, load_params
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
TRIPLE_FILES = (TRIPLES, VOCABULARY)
ONTOLOGY_FILES = (VOCABULARY, TRIPLES, PAIRS, CONTEXTS)

Source = Annotated[Path, Argument(metavar="FILE", help="The published file.")]
Out = Annotated[Path, Option(help="Folder to write.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace files that exist.")]
MinUses = Annotated[int, Option(metavar="N", help="Training texts that must contain a new token.")]
Base = Annotated[str | None, Option(metavar="MODEL", help=f"Base: {MODEL}. Default: {PARAMS_OR_DEFAULT}.")]
MinPieces = Annotated[
    int,
    Option("--min-subwords", "--min-pieces", metavar="N", help="Fewest subword tokens of a new word."),
]
MaxTokens = Annotated[int, Option(metavar="N", help="Most new tokens; the most used words come first.")]


def import_conceptnet(
    file: Source,
    language: Annotated[str, Option(help="Language code as in /c/en/.")] = "en",
    min_weight: Annotated[float, Option(metavar="X", help="Least weight of an assertion.")] = 1.0,
    relations: Annotated[str, Option(metavar="NAMES", help="Such as IsA,UsedFor. Default: all but ExternalURL.")] = "",
    min_uses: MinUses = Limits.min_uses,
    out: Out = RAW / "imported",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Import assertions of ConceptNet 5 (gzip CSV) as triples."""
    selection, limits = Selection(language, min_weight, _names(relations)), Limits(min_uses=min_uses)
    read = partial(read_conceptnet, file, selection, limits)
    _import(file, read, TRIPLE_FILES, out, overwrite, Output(as_json, quiet))


def import_obo(
    file: Source,
    scopes: Annotated[
        str, Option(metavar="NAMES", help=f"Scopes of the synonyms to take, of {','.join(SCOPES)}.")
    ] = ",".join(sorted(DEFAULT_SCOPES)),
    base: Base = None,
    min_pieces: MinPieces = Limits.min_pieces,
    max_tokens: MaxTokens = Limits.max_tokens,
    min_uses: MinUses = Limits.min_uses,
    out: Out = RAW / "imported",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Import an ontology in OBO 1.2 or 1.4 as words, pairs, triples and contexts."""
    chosen = frozenset(name.upper() for name in _names(scopes))
    limits = Limits(min_pieces, min_uses, max_tokens)
    read = partial(_ontology, partial(read_obo, file, chosen), file, base, limits)
    _import(file, read, ONTOLOGY_FILES, out, overwrite, Output(as_json, quiet))


def import_skos(
    file: Source,
    language: Annotated[str, Option(help="Language tag as in xml:lang.")] = "en",
    base: Base = None,
    min_pieces: MinPieces = Limits.min_pieces,
    max_tokens: MaxTokens = Limits.max_tokens,
    min_uses: MinUses = Limits.min_uses,
    out: Out = RAW / "imported",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Import a SKOS thesaurus (.rdf, .xml, .nt, .ttl) as words, pairs, triples and contexts."""
    limits = Limits(min_pieces, min_uses, max_tokens)
    read = partial(_ontology, partial(read_skos, file, language), file, base, limits)
    _import(file, read, ONTOLOGY_FILES, out, overwrite, Output(as_json, quiet))


def import_triples(
    file: Source,
    columns: Annotated[
        str,
        Option(
            metavar="NAMES",
            help="Columns in the order of the file, such as relation,head,tail,weight; - skips one. "
            "Default: the names in the first line.",
        ),
    ] = "",
    relations: Annotated[str, Option(metavar="NAMES", help="Such as IsA,UsedFor. Default: all.")] = "",
    min_weight: Annotated[
        float | None, Option(metavar="X", help="Least value of the column weight. Default: any.")
    ] = None,
    min_uses: MinUses = Limits.min_uses,
    out: Out = RAW / "imported",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Import a plain file of triples (.tsv, .txt, .csv) as triples and relation tokens."""
    names = tuple(name.strip() for name in columns.split(",")) if columns else ()
    selection = TripleSelection(names, _names(relations), -math.inf if min_weight is None else min_weight)
    limits = Limits(min_uses=min_uses)
    read = partial(read_triples, file, selection, limits)
    _import(file, read, TRIPLE_FILES, out, overwrite, Output(as_json, quiet))


def _import(
    file: Path,
    read: Callable[[Report], ImportedRows],
    files: tuple[str, ...],
    out: Path,
    overwrite: bool,
    output: Output,
) -> None:
    # Before reading, which may take minutes.
    check_source(file)
    check_absent(out, files, overwrite)
    with _progress(file) as report:
        rows = read(report)
    written = write_raw(rows, out, overwrite)
    output.show(_table(written, out))
    for reason, count in sorted(rows.left_out.items(), key=lambda item: -item[1]):
        output.line(f"left out: {count:,} for {reason}")
    advice = _advice(rows, out)
    output.line(advice)
    output.document({"folder": str(out), "rows": written, "left_out": dict(rows.left_out), "params": advice})


def _ontology(
    parse: Callable[[Report], Ontology], file: Path, base: str | None, limits: Limits, report: Report
) -> ImportedRows:
    tokenizer = _base_tokenizer(base)
    ontology = parse(report)
    try:
        return ontology_rows(ontology, tokenizer, limits)
    except VocabgraftError as error:
        raise VocabgraftError(f"{file}: {error}") from error


def _base_tokenizer(model: str | None) -> "Tokenizer":
    from tasks.support.models import model_folder, resolve_base
    from vocabgraft.tokens.tokenizer import load_base_tokenizer

    if model is None and PARAMS_FILE.exists():
        return load_base_tokenizer(resolve_base(load_params().base)[0])
    return load_base_tokenizer(model_folder("--base", model or DEFAULT_BASE))


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


@contextmanager
def _progress(path: Path) -> Iterator[Report]:
    """A progress bar of the bytes read, if stderr is a terminal."""
    with progress_bar(transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(f"reading {path.name}", total=path.stat().st_size)
        yield lambda count: bar.update(task, advance=count)


def _table(written: dict[str, int], folder: Path) -> Table:
    table = Table(title=f"written to {folder}", title_justify="left")
    table.add_column("file")
    table.add_column("rows", justify="right")
    for name, rows in written.items():
        table.add_row(name, f"{rows:,}")
    return table


def _advice(rows: ImportedRows, folder: Path) -> str:
    """The section to put into params.yaml, as YAML with comments."""
    import yaml

    inside = _inside_raw(folder)
    section = params_section(rows, inside or Path(folder.name)).model_dump(exclude_none=True)
    lines = ["# replace the section validate_data of params.yaml with this:"]
    if inside is None:
        lines.append(f"# (first move {folder} into {RAW}: stages read only files in there)")
    lines.append(yaml.safe_dump({"validate_data": section}, sort_keys=False).rstrip())
    if "terms" not in {dataset["name"] for dataset in section["datasets"]}:
        lines += ["# and in register_model.gates, because there is no dataset terms:", "# benefit: relations.all.mrr"]
    return "\n".join(lines)


def _inside_raw(folder: Path) -> Path | None:
    try:
        return folder.resolve().relative_to(RAW.resolve())
    except ValueError:
        return None
