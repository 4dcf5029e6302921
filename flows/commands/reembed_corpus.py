"""Keep an index valid after a new model: compute again only the vectors that the new words change.

python -m flows.commands.reembed_corpus --help
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flows.commands.exit_code import exit_code
from tasks.support.models import model_folder
from vocabgraft.models.base import load_model
from vocabgraft.storage.artifacts import content_digest, digest_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from vocabgraft.index.reembed import Reembedded, ReembeddingJob
    from vocabgraft.models.encode import Role

ROLES: "dict[str, Role | None]" = {"document": "document", "query": "query", "plain": None}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    return exit_code("reembed_corpus", options.out, lambda: _reembed(options))


def _reembed(options: argparse.Namespace) -> None:
    previous, new = model_folder("--previous", options.previous), model_folder("--model", options.model)
    job = _job(options, digest_of([content_digest(previous), content_digest(new)]))
    from vocabgraft.index.model_diff import compare_models
    from vocabgraft.index.reembed import reembed, require_possible

    # Before models are loaded, which takes seconds.
    require_possible(job)
    # Both on the CPU, so that no GPU has to hold two.
    model = load_model(new, device="cpu")
    difference = compare_models(load_model(previous, device="cpu"), model, job.settings.role)
    if difference.everything is not None:
        print(f"every text is computed again: {difference.everything}")
    _print(reembed(job, difference, _on_device(model, options.device)), job)


def _job(options: argparse.Namespace, models: str) -> "ReembeddingJob":
    from vocabgraft.index.parquet import Columns
    from vocabgraft.index.reembed import EncodingSettings, ReembeddingJob

    columns = Columns(options.id_column, options.text_column, options.vector_column)
    settings = EncodingSettings(ROLES[options.encode_as], options.batch_size, options.normalise)
    return ReembeddingJob(options.index, options.out, models, columns, settings, options.sample, options.tolerance)


def _on_device(model: "SentenceTransformer", device: str | None) -> "SentenceTransformer":
    from sentence_transformers.util import get_device_name

    return model.to(device or get_device_name())


def _print(done: "Reembedded", job: "ReembeddingJob") -> None:
    kept = done.texts - done.recomputed
    share = 100 * done.recomputed / done.texts
    print(f"{done.texts:,} texts: {done.recomputed:,} ({share:.2f} %) computed again, {kept:,} vectors kept")
    if done.resumed:
        print(f"of those, {done.resumed:,} came from a run that was stopped")
    if done.sampled:
        print(
            f"{done.sampled:,} random kept vectors differ from a full computation by at most {done.deviation:.1e} of "
            f"their length (allowed: {job.tolerance:.0e})"
        )
    total = sum(done.seconds.values())
    steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in done.seconds.items())
    print(f"took {total:.1f} s ({steps})")
    if done.seconds_for_all is not None:
        saved = max(0.0, done.seconds_for_all - total)
        print(f"embedding all texts would take about {done.seconds_for_all:.0f} s: {saved:.0f} s saved")
    print(f"written: {job.destination}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.commands.reembed_corpus",
        description="Write an index again for a new model, computing only the vectors that its new words change. "
        "A run that was stopped goes on where it was.",
    )
    add = parser.add_argument
    add("index", type=Path, help="a Parquet file, or a folder of them, with vectors of the previous model")
    add("--previous", required=True, metavar="MODEL", help="folder, package:MODULE/FOLDER or models:/NAME@ALIAS")
    add("--model", required=True, metavar="MODEL", help="the new one, named in the same ways")
    add("--out", type=Path, required=True, help="the file or folder to write; must not be there yet")
    for name in ("id", "text", "vector"):
        add(f"--{name}-column", default=name, metavar="NAME", help=f"default: {name}")
    add("--encode-as", choices=ROLES, default="document", help="which prompt the vectors were made with")
    add("--normalise", action="store_true", help="the vectors were scaled to length 1 after encoding")
    add("--batch-size", type=_positive, default=64, help="texts a batch (default: 64)")
    add("--sample", type=_positive, default=256, help="kept vectors that are verified (default: 256)")
    add("--tolerance", type=float, default=1e-6, help="how far they may be off, relative to length (default: 1e-6)")
    add("--device", help="cpu, cuda, mps (default: the fastest that torch finds)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
