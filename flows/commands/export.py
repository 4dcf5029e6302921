"""`vocabgraft export`: exports a model to ONNX, for services without PyTorch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from typer import Argument, Option

from flows.commands.output import MODEL, Json, Output, Quiet
from tasks.support.models import model_folder
from vocabgraft.errors import VocabgraftError, did_you_mean
from vocabgraft.models.saving import PACK_FOLDER

if TYPE_CHECKING:
    from vocabgraft.export.to_onnx import Export

FORMATS = ("onnx",)


def export_model(
    model: Annotated[str, Argument(metavar="MODEL", help=f"The model: {MODEL}.")],
    out: Annotated[Path, Option(metavar="DIR", help="Folder of the export; must not exist.")],
    to: Annotated[str, Option(metavar="FORMAT", help="onnx.")] = "onnx",
    precision: Annotated[str, Option(help="Number type of the weights: float32, int8 or uint8.")] = "float32",
    queries: Annotated[
        Path | None, Option(metavar="FILE", help="Queries, one per line, to measure how many search results stay.")
    ] = None,
    documents: Annotated[
        Path | None, Option(metavar="FILE", help="Documents to search, one per line. Default: those of --queries.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export a model to ONNX, and measure its agreement with the model.

    onnxruntime, text-embeddings-inference, fastembed and sentence-transformers can load the folder.

    The model and the export encode the same texts. The command prints the cosine of their embeddings and the share of
    search results that stay, and writes both to DIR/export.json. Default texts: the contexts of the model's pack and
    general sentences.
    """
    if to == "static":
        raise VocabgraftError(
            "a static export is not offered: model2vec 0.10 takes added tokens out of the tokenizer before it "
            "distills, so the new words would be lost; allowed: onnx"
        )
    if to not in FORMATS:
        raise VocabgraftError(f"there is no format {to!r}{did_you_mean(to, FORMATS)}; allowed: {', '.join(FORMATS)}")
    if documents is not None and queries is None:
        raise VocabgraftError("--documents is given without --queries; give the queries too")
    given = None if queries is None else _lines(queries), None if documents is None else _lines(documents)
    output = Output(as_json, quiet)
    with output.working():
        made = _export(model, out, precision, *given)
    output.show(_table(made))
    output.line(f"written: {out}")
    output.document({"out": str(out), **made.as_json()})


def _export(
    model: str, out: Path, precision: str, queries: Sequence[str] | None, documents: Sequence[str] | None
) -> "Export":
    from vocabgraft.export.graph import require_packages
    from vocabgraft.export.to_onnx import export_onnx, general_sample, require_precision
    from vocabgraft.models.base import load_model

    require_packages()
    checked = require_precision(precision)
    folder = model_folder("MODEL", model)
    if queries is None:
        general, found = general_sample()
        contexts = _contexts(folder)
        queries, documents = [*contexts, *general], [*contexts, *found]
    loaded = load_model(folder, device="cpu")
    return export_onnx(loaded, out, checked, queries, documents or queries)


def _contexts(folder: Path) -> list[str]:
    """Texts with new words, from the pack beside a merged model; none where there is no pack."""
    from vocabgraft.packs.pack_files import is_pack, read_pack

    pack = folder / PACK_FOLDER
    return list(read_pack(pack).contexts) if pack.is_dir() and is_pack(pack) else []


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise VocabgraftError(f"{path} is not UTF-8 ({error}); save it as UTF-8 text, one text per line") from error
    if not (texts := [line for line in lines if line.strip()]):
        raise VocabgraftError(f"{path} has no text; give one per line")
    return texts


def _table(made: "Export") -> Table:
    table = Table(title=f"{made.precision}: {made.megabytes:.1f} MB", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in _rows(made):
        table.add_row(name, value)
    return table


def _rows(made: "Export") -> list[tuple[str, Any]]:
    agreement = made.agreement
    return [
        ("texts encoded by the model and by the export", f"{agreement.texts:,}"),
        ("cosine of both, mean", f"{agreement.cosine_mean:.6f}"),
        ("cosine of both, lowest", f"{agreement.cosine_min:.6f}"),
        ("ten nearest documents that stay", f"{100 * agreement.nearest_kept:.1f} %"),
        ("nearest document that stays", f"{100 * agreement.first_kept:.1f} %"),
    ]
