"""`vocabgraft pack combine`: several packs for one base as one pack, with their conflicts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from flows.commands.output import MODEL, Json, Output, Quiet
from tasks.support.models import model_folder, pack_folder
from vocabgraft.checks.result import count_verdicts, describe_counts, explain_failures
from vocabgraft.config.params import PARAMS_FILE, load_params
from vocabgraft.config.stages import CheckConsistencyParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import load_model
from vocabgraft.packs.combine import Combined, Conflict, combine, overlaps
from vocabgraft.packs.gate import check_chain, write_chain
from vocabgraft.packs.pack import Pack, check_name, identify, renamed, require_base
from vocabgraft.packs.pack_files import read_pack, write_pack
from vocabgraft.storage.atomic import work_beside

SHOWN = 30


def combine_packs(
    packs: Annotated[list[str], Argument(metavar="PACK...", help=f"Packs: each a {MODEL}.")],
    out: Annotated[Path, Option(help="Folder of the new pack.")],
    base: Annotated[
        str | None,
        Option(metavar="MODEL", help=f"Base of the packs: {MODEL}. Default: the base that the first pack names."),
    ] = None,
    on_conflict: Annotated[
        Literal["refuse", "first"],
        Option(help="If two tokens contradict each other: refuse all, or keep that of the earlier pack."),
    ] = "refuse",
    name: Annotated[
        str | None, Option(metavar="NAME", help="Name of the new pack. Default: that of the folder.")
    ] = None,
    model: Annotated[
        Path | None, Option(metavar="FOLDER", help="Also write the merged model, if every consistency check passes.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Combine several packs for one base into one pack."""
    output = Output(as_json, quiet)
    read = _with_names_of_their_own([read_pack(pack_folder("PACK", place)) for place in packs])
    folder = _locate_base(base, read[0])
    loaded = load_model(folder, device="cpu")
    identity = identify(loaded, read[0].base.model)
    for pack in read:
        require_base(pack, identity)
    tokenizer = loaded.tokenizer.backend_tokenizer
    combined = combine(read, tokenizer, on_conflict, check_name(name or out.name))
    conflicts = [*combined.conflicts, *overlaps(read, tokenizer)]
    if model is not None:
        output.line(_write_model(folder, combined.pack, model))
    write_pack(combined.pack, out)
    _show(read, combined, conflicts, output)
    output.line(f"written: {out}")


def _show(packs: Sequence[Pack], combined: Combined, conflicts: Sequence[Conflict], output: Output) -> None:
    rows = [_row(pack, sum(name == pack.name for name, _ in combined.left_out)) for pack in packs]
    rows.append(_row(combined.pack, len(combined.left_out)))
    output.show(_table(rows))
    for conflict in conflicts[:SHOWN]:
        output.line(str(conflict))
    if (more := len(conflicts) - SHOWN) > 0:
        output.line(f"and {more} more")
    if any(pack.adapter is not None for pack in packs):
        output.line(
            "one pack has an adapter, which also changes texts of the other packs: encode the whole index again"
        )
    output.document({"packs": rows, "conflicts": [str(conflict) for conflict in conflicts]})


def _row(pack: Pack, left_out: int) -> dict[str, Any]:
    return {
        "pack": pack.name,
        "tokens": len(pack.tokens),
        "left_out": left_out,
        "adapter": pack.adapter is not None,
        "license": pack.licence,
    }


def _with_names_of_their_own(packs: Sequence[Pack]) -> list[Pack]:
    """Number packs of the same name, as two runs of one project make them."""
    named: list[Pack] = []
    for pack in packs:
        taken = sum(pack.name == other.name for other in packs[: len(named)])
        named.append(renamed(pack, f"{pack.name}-{taken + 1}") if taken else pack)
    return named


def _locate_base(given: str | None, pack: Pack) -> Path:
    if given is not None:
        return model_folder("--base", given)
    try:
        return model_folder(f"the base of pack {pack.name}", pack.base.model)
    except VocabgraftError as error:
        raise VocabgraftError(f"{error}; or name its folder with --base") from error


def _write_model(base: Path, pack: Pack, folder: Path) -> str:
    """Write the merged model if every check passes."""
    if folder.exists():
        raise VocabgraftError(f"--model {folder} exists already; name a new folder")
    params = load_params().check_consistency if PARAMS_FILE.is_file() else CheckConsistencyParams()
    with work_beside(folder) as work:
        chain = write_chain(base, pack, work)
        checks = check_chain(chain, pack.contexts, params)
        counts = describe_counts(count_verdicts(check.verdict for check in checks))
        failed = [check for check in checks if check.verdict == "failed"]
        if failed:
            raise VocabgraftError(
                f"{counts}, so nothing is written:\n" + explain_failures([check.as_json() for check in failed])
            )
        chain.folders.merged.rename(folder)
    return f"{counts}; written: {folder}"


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="packs", title_justify="left")
    for heading in ("pack", "tokens", "left out", "adapter", "license"):
        table.add_column(heading, justify="right" if heading in ("tokens", "left out") else "left")
    for row in rows:
        if row is rows[-1]:
            table.add_section()
        adapter = "yes" if row["adapter"] else "no"
        counts = (f"{row['tokens']:,}", f"{row['left_out']:,}")
        table.add_row(row["pack"], *counts, adapter, Text(row["license"] or "unknown"))
    return table
