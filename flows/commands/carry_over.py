"""Rebuild a vocabulary pack for another base, such as a new release of its own, and say what it cost.

python -m flows.commands.carry_over --help
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from flows.commands.exit_code import exit_code
from tasks.support.models import model_folder
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import load_model

if TYPE_CHECKING:
    from vocabgraft.packs.transfer import Carried, Method

SEED = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    return exit_code("carry_over", options.out, lambda: _carry(options))


def _carry(options: argparse.Namespace) -> None:
    from vocabgraft.config.stages import DistillationParams
    from vocabgraft.packs.pack import read_pack, write_pack
    from vocabgraft.packs.transfer import METHODS, carry_over, require_method

    if options.out.exists():
        raise VocabgraftError(f"{options.out} is there already; name another folder, or delete it")
    default: Method = "source_distillation" if options.pack_base else "distillation"
    given: Method | None = options.method
    chosen = given or default
    require_method(chosen, options.pack_base is not None)
    if options.compare:
        require_method("matching_pursuit", options.pack_base is not None)
    pack = read_pack(options.pack)
    model = load_model(model_folder("--base", options.base), device="cpu")
    source = load_model(model_folder("--pack-base", options.pack_base), device="cpu") if options.pack_base else None
    methods = METHODS if options.compare else (chosen,)
    settings = DistillationParams()
    carried: dict[Method, Carried] = {
        method: carry_over(pack, model, options.base, method, settings, SEED, source) for method in methods
    }
    write_pack(carried[chosen].pack, options.out)
    _print(carried, chosen, options.out)


def _print(carried: "dict[Method, Carried]", chosen: "Method", out: Path) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(_table(carried))
    done = carried[chosen]
    print(f"{len(done.pack.tokens)} tokens carried over by {chosen} in {done.seconds:.1f} s")
    if done.left_out:
        print(f"left out, since the new base reads each as one token: {', '.join(done.left_out)}")
    if done.adapter_left:
        print("the pack's adapter is left behind: it is of the old base's weights; train one again on the new base")
    print(f"written: {out}")


def _table(carried: "dict[Method, Carried]") -> Table:
    texts = next(iter(carried.values())).quality.texts
    table = Table(title=f"on {texts} texts with a new token, beside the new base with old pieces", title_justify="left")
    for heading in (
        "method",
        "seconds",
        "shared tokens",
        "fidelity: mean",
        "10th percentile",
        "text finds itself: MRR",
    ):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for method, entry in carried.items():
        quality = entry.quality
        shared = "" if entry.shared is None else f"{entry.shared:,}"
        figures = (f"{quality.mean:.3f}", f"{quality.p10:.3f}", f"{quality.reciprocal_rank:.1f}")
        table.add_row(method, f"{entry.seconds:.1f}", shared, *figures)
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.commands.carry_over",
        description="Rebuild a vocabulary pack for another base. Distillation needs the pack's texts alone; the other "
        "methods need the pack's own base too, and bring what its rows learnt there.",
    )
    add = parser.add_argument
    add("pack", type=Path, help="the pack's folder")
    add("--base", required=True, metavar="MODEL", help="the new one: folder, package:MODULE/FOLDER, models:/NAME@ALIAS")
    add("--pack-base", metavar="MODEL", help="the pack's own base, named in the same ways")
    add("--out", type=Path, required=True, help="the folder of the new pack; must not be there yet")
    add(
        "--method",
        help="distillation, source_distillation, matching_pursuit or least_squares (default: source_distillation with "
        "--pack-base, else distillation)",
    )
    add("--compare", action="store_true", help="try all four and print them in one table; --out gets --method's")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
