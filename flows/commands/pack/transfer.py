"""`vocabgraft pack transfer`: rebuild a pack for another base, such as a new release, with its fidelity."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from rich.table import Table
from typer import Argument, Option

from flows.commands.output import MODEL, Json, Output, Quiet
from tasks.support.models import model_folder, pack_folder
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import load_model

if TYPE_CHECKING:
    from vocabgraft.packs.transfer import Carried, Method

SEED = 0


def transfer_pack(
    pack: Annotated[str, Argument(metavar="PACK", help=f"The pack: {MODEL}.")],
    base: Annotated[str, Option(metavar="MODEL", help=f"The new base: {MODEL}.")],
    out: Annotated[Path, Option(help="Folder of the new pack; must not exist.")],
    pack_base: Annotated[str | None, Option(metavar="MODEL", help="The pack's own base.")] = None,
    method: Annotated[
        str | None,
        Option(
            help="distillation, source_distillation, matching_pursuit or least_squares. Default: source_distillation "
            "with --pack-base, else distillation."
        ),
    ] = None,
    compare: Annotated[
        bool, Option("--compare", help="Try all four methods; --out gets the pack of --method.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rebuild a pack for another base model.

    Distillation needs only the pack's texts. The other methods also need the pack's own base, and transfer what the
    rows learned there.
    """
    from vocabgraft.config.stages import DistillationParams
    from vocabgraft.packs.pack_files import read_pack, write_pack
    from vocabgraft.packs.transfer import METHODS, carry_over, require_method

    if out.exists():
        raise VocabgraftError(f"{out} exists already; name another folder, or delete it")
    chosen = cast("Method", method or ("source_distillation" if pack_base else "distillation"))
    require_method(chosen, pack_base is not None)
    if compare:
        require_method("matching_pursuit", pack_base is not None)
    read = read_pack(pack_folder("PACK", pack))
    model = load_model(model_folder("--base", base), device="cpu")
    source = load_model(model_folder("--pack-base", pack_base), device="cpu") if pack_base else None
    carried: dict[Method, Carried] = {
        name: carry_over(read, model, base, name, DistillationParams(), SEED, source)
        for name in (METHODS if compare else (chosen,))
    }
    write_pack(carried[chosen].pack, out)
    _show(carried, chosen, out, Output(as_json, quiet))


def _show(carried: "dict[Method, Carried]", chosen: "Method", out: Path, output: Output) -> None:
    done = carried[chosen]
    output.show(_table(carried))
    output.line(f"{len(done.pack.tokens)} tokens transferred by {chosen} in {done.seconds:.1f} s")
    if done.left_out:
        output.line(f"left out, because each is already one token of the new base: {', '.join(done.left_out)}")
    if done.adapter_left:
        output.line("the pack's adapter is left out: it changes weights of the old base; train one on the new base")
    output.line(f"written: {out}")
    methods = {method: _as_json(entry) for method, entry in carried.items()}
    output.document({"method": chosen, "left_out": list(done.left_out), "methods": methods})


def _as_json(entry: "Carried") -> dict[str, Any]:
    quality = entry.quality
    return {
        "seconds": entry.seconds,
        "shared_tokens": entry.shared,
        "texts": quality.texts,
        "fidelity_mean": float(quality.mean),
        "fidelity_p10": float(quality.p10),
        "mrr": float(quality.reciprocal_rank),
    }


def _table(carried: "dict[Method, Carried]") -> Table:
    texts = next(iter(carried.values())).quality.texts
    table = Table(
        title=f"on {texts} texts with a new token, compared with the new base and its subword tokens",
        title_justify="left",
    )
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
