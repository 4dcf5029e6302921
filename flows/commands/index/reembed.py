"""`vocabgraft index reembed`: update an index for a new model; only texts with new tokens are encoded again."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from flows.commands.output import MODEL, Json, Output, Quiet
from tasks.support.models import model_folder
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import load_model
from vocabgraft.storage.artifacts import content_digest, digest_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from vocabgraft.index.reembed import Reembedded, ReembeddingJob
    from vocabgraft.models.encode import Role

ROLES: "dict[str, Role | None]" = {"document": "document", "query": "query", "plain": None}


def reembed_index(
    index: Annotated[Path, Argument(metavar="INDEX", help="Parquet file, or folder of them, of the previous model.")],
    previous: Annotated[str, Option(metavar="MODEL", help=f"The previous model: {MODEL}.")],
    model: Annotated[str, Option(metavar="MODEL", help=f"The new model: {MODEL}.")],
    out: Annotated[
        Path | None, Option(help="File or folder to write; must not exist. Needed unless --dry-run is given.")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Count the texts to encode again; write nothing.")] = False,
    id_column: Annotated[str, Option(metavar="NAME", help="Column of the ids.")] = "id",
    text_column: Annotated[str, Option(metavar="NAME", help="Column of the texts.")] = "text",
    vector_column: Annotated[str, Option(metavar="NAME", help="Column of the vectors.")] = "vector",
    encode_as: Annotated[
        Literal["document", "query", "plain"], Option(help="The prompt that the vectors were encoded with.")
    ] = "document",
    normalize: Annotated[
        bool, Option("--normalize", "--normalise", help="The vectors were scaled to length 1 after encoding.")
    ] = False,
    batch_size: Annotated[int, Option(metavar="N", min=1, help="Texts per batch.")] = 64,
    sample: Annotated[int, Option(metavar="N", min=1, help="Number of kept vectors to verify.")] = 256,
    tolerance: Annotated[
        float, Option(metavar="X", help="Allowed deviation of verified vectors, relative to length.")
    ] = 1e-6,
    device: Annotated[str | None, Option(help="cpu, cuda or mps. Default: the fastest that torch finds.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Update an index for a new model; only texts with new tokens are encoded again.

    If a run is stopped, the next one resumes it.
    """
    from vocabgraft.index.model_diff import compare_models
    from vocabgraft.index.parquet import Columns
    from vocabgraft.index.reembed import EncodingSettings, ReembeddingJob, count_stale, reembed, require_possible

    columns = Columns(id_column, text_column, vector_column)
    settings = EncodingSettings(ROLES[encode_as], batch_size, normalize)
    output = Output(as_json, quiet)
    if out is None and not dry_run:
        raise VocabgraftError("--out is missing: name the file or folder to write, or give --dry-run")
    folders = model_folder("--previous", previous), model_folder("--model", model)
    job = ReembeddingJob(
        index,
        out or index,
        digest_of([content_digest(folder) for folder in folders]),
        columns,
        settings,
        sample,
        tolerance,
    )
    if not dry_run:
        # Before loading models, which takes seconds.
        require_possible(job)
    # Both on the CPU, so that no GPU has to hold two.
    loaded = load_model(folders[1], device="cpu")
    difference = compare_models(load_model(folders[0], device="cpu"), loaded, settings.role)
    if difference.everything is not None:
        output.line(f"every text is encoded again: {difference.everything}")
    if dry_run:
        _show_counts(*count_stale(index, columns, difference), output)
        return
    _show(reembed(job, difference, _on_device(loaded, device)), job, output)


def _show_counts(texts: int, stale: int, output: Output) -> None:
    output.line(f"{texts:,} texts: {stale:,} ({100 * stale / texts:.2f} %) to encode again; nothing was written")
    output.document({"texts": texts, "to_encode_again": stale})


def _on_device(model: "SentenceTransformer", device: str | None) -> "SentenceTransformer":
    from sentence_transformers.util import get_device_name

    return model.to(device or get_device_name())


def _show(done: "Reembedded", job: "ReembeddingJob", output: Output) -> None:
    kept = done.texts - done.recomputed
    share = 100 * done.recomputed / done.texts
    output.line(f"{done.texts:,} texts: {done.recomputed:,} ({share:.2f} %) computed again, {kept:,} vectors kept")
    if done.resumed:
        output.line(f"of those, {done.resumed:,} came from a stopped run")
    if done.sampled:
        output.line(
            f"{done.sampled:,} random kept vectors differ from a full computation by at most {done.deviation:.1e} of "
            f"their length (allowed: {job.tolerance:.0e})"
        )
    total = sum(done.seconds.values())
    steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in done.seconds.items())
    output.line(f"took {total:.1f} s ({steps})")
    if done.seconds_for_all is not None:
        saved = max(0.0, done.seconds_for_all - total)
        output.line(f"embedding all texts would take about {done.seconds_for_all:.0f} s: {saved:.0f} s saved")
    output.line(f"written: {job.destination}")
    output.document(asdict(done) | {"written": str(job.destination)})
