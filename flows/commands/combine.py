"""Several vocabulary packs for one base as one pack, and where they contradict each other.

python -m flows.commands.combine --help
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.commands.exit_code import exit_code
from vocabgraft.checks.result import explain_failures
from vocabgraft.checks.verdicts import count_verdicts, describe_counts
from vocabgraft.config.params import PARAMS_FILE, load_params
from vocabgraft.config.stages import CheckConsistencyParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import REGISTRY_PREFIX, load_model, locate_base
from vocabgraft.packs.combine import Combined, combine, overlaps
from vocabgraft.packs.gate import check_chain, write_chain
from vocabgraft.packs.pack import Pack, check_name, identify, read_pack, renamed, require_base, write_pack

SHOWN = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    return exit_code("combine", options.out, lambda: _combine(options, console))


def locate_pack(place: str) -> Path:
    """The folder of a pack, given as a folder or as `models:/NAME@ALIAS` or `models:/NAME/VERSION`."""
    if not place.startswith(REGISTRY_PREFIX):
        return Path(place)
    from tasks.registry.lookup import download_pack

    return download_pack(place)


def _combine(options: argparse.Namespace, console: Console) -> None:
    packs = _with_names_of_their_own([read_pack(locate_pack(place)) for place in options.packs])
    base = _locate_base(options.base or packs[0].base.model)
    model = load_model(base, device="cpu")
    identity = identify(model, packs[0].base.model)
    for pack in packs:
        require_base(pack, identity)
    tokenizer = model.tokenizer.backend_tokenizer
    combined = combine(packs, tokenizer, options.on_conflict, check_name(options.name or options.out.name))
    within = overlaps(packs, tokenizer)
    if options.model is not None:
        _write_model(base, combined.pack, options.model, console)
    write_pack(combined.pack, options.out)
    console.print(_table(packs, combined))
    for conflict in [*combined.conflicts, *within][:SHOWN]:
        console.print(str(conflict), markup=False, highlight=False)
    if (more := len(combined.conflicts) + len(within) - SHOWN) > 0:
        console.print(f"and {more} more")
    if any(pack.adapter is not None for pack in packs):
        console.print(
            "one pack has an adapter: it moves the texts of the others too, so the whole index is computed anew"
        )
    console.print(f"written: {options.out}", markup=False, highlight=False)


def _with_names_of_their_own(packs: Sequence[Pack]) -> list[Pack]:
    """Packs of one name, as two runs of one project have, are told apart by a number."""
    named: list[Pack] = []
    for pack in packs:
        taken = sum(pack.name == other.name for other in packs[: len(named)])
        named.append(renamed(pack, f"{pack.name}-{taken + 1}") if taken else pack)
    return named


def _locate_base(name: str) -> Path:
    if name.startswith(REGISTRY_PREFIX):
        from tasks.registry.lookup import download_model

        return download_model(name)
    try:
        return locate_base(name)
    except VocabgraftError as error:
        raise VocabgraftError(f"the base of the packs is not found ({error}); name its folder with --base") from error


def _write_model(base: Path, pack: Pack, folder: Path, console: Console) -> None:
    """The merged model, where every check passes; nothing otherwise."""
    if folder.exists():
        raise VocabgraftError(f"--model {folder} is there already; name a new folder")
    params = load_params().check_consistency if PARAMS_FILE.is_file() else CheckConsistencyParams()
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        chain = write_chain(base, pack, work)
        checks = check_chain(chain, pack.contexts, params)
        counts = describe_counts(count_verdicts(check.verdict for check in checks))
        failed = [check for check in checks if check.verdict == "failed"]
        if failed:
            raise VocabgraftError(
                f"{counts}, so nothing is written:\n" + explain_failures([check.as_json() for check in failed])
            )
        chain.folders.merged.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    console.print(f"{counts}; written: {folder}")


def _table(packs: Sequence[Pack], combined: Combined) -> Table:
    table = Table(title="packs", title_justify="left")
    for heading in ("pack", "tokens", "left out", "adapter", "licence"):
        table.add_column(heading, justify="right" if heading in ("tokens", "left out") else "left")
    for pack in packs:
        dropped = sum(name == pack.name for name, _ in combined.left_out)
        adapter = "yes" if pack.adapter is not None else "no"
        table.add_row(pack.name, f"{len(pack.tokens):,}", f"{dropped:,}", adapter, pack.licence or "not said")
    table.add_section()
    whole = combined.pack
    adapter = "yes" if whole.adapter is not None else "no"
    dropped = len(combined.left_out)
    table.add_row(whole.name, f"{len(whole.tokens):,}", f"{dropped:,}", adapter, whole.licence or "not said")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.commands.combine", description="Make one vocabulary pack of several for one base."
    )
    add = parser.add_argument
    add("packs", nargs="+", metavar="PACK", help="folders of packs, or models:/NAME@ALIAS of registered models")
    add("--out", type=Path, required=True, help="the folder of the new pack")
    add("--base", metavar="MODEL", help="the base of the packs (default: as the first pack names it)")
    add(
        "--on-conflict",
        choices=("refuse", "first"),
        default="refuse",
        help="of two tokens that contradict each other: refuse all (default), or keep that of the earlier pack",
    )
    add("--name", help="of the new vocabulary (default: the name of the folder)")
    add("--model", type=Path, metavar="FOLDER", help="also write the merged model, if every consistency check passes")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
