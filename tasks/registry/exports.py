"""Logs exports of a registered model, with each export's agreement with the model."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from tasks.registry.lookup import Client, Registered, store_errors
from tasks.registry.versions import tag_version
from vocabgraft.config.stages import ExportName
from vocabgraft.data.accepted import read_datasets

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from vocabgraft.export.quantize import Precision

logger = logging.getLogger(__name__)

# Texts per dataset; encoding them twice takes seconds.
TEXTS = 300
TAG = "export."


def missing_exports(client: Client, registered: Registered | None, wanted: Sequence[ExportName]) -> list[ExportName]:
    """The exports that a version's run lacks; all of them if there is no version."""
    if registered is None or not wanted:
        return list(wanted)
    with store_errors(f"the files of {registered.name} version {registered.version} cannot be listed"):
        there = {entry.path for entry in client.list_artifacts(registered.run_id)}
    return [name for name in wanted if name not in there]


@contextmanager
def made_exports(
    model: "SentenceTransformer | None", wanted: Sequence[ExportName], datasets: Path
) -> Iterator[dict[ExportName, Path]]:
    """Temporary folders of the exports by name.

    Args:
        model: the merged model; None if there is nothing to export.
        wanted: names of the exports.
        datasets: folder of the datasets, whose held-out texts measure the agreement with the model.

    Raises:
        VocabgraftError: if the exporter does not support the model or its packages are missing.
    """
    with TemporaryDirectory() as scratch:
        found: dict[ExportName, Path] = {}
        for name in wanted:
            assert model is not None, "exports need a model"
            found[name] = Path(scratch) / name
            _export(model, name, found[name], *held_out(datasets))
        yield found


def held_out(datasets: Path) -> tuple[list[str], list[str]]:
    """Queries and documents of the retrieval datasets' test splits."""
    queries: list[str] = []
    documents: list[str] = []
    for dataset in read_datasets(datasets):
        if dataset.is_retrieval and dataset.rows("test"):
            pairs = dataset.pairs("test")[:TEXTS]
            queries += [query for query, _ in pairs]
            documents += [document for _, document in pairs]
    return list(dict.fromkeys(queries)), list(dict.fromkeys(documents))


def log_exports(client: Client, registered: Registered, exports: dict[ExportName, Path]) -> None:
    """Log exports with the run of a version, and their agreement with the model as tags of the version."""
    for name, folder in exports.items():
        with store_errors(f"MLflow refused the export {name} of {registered.name} version {registered.version}"):
            client.log_artifacts(registered.run_id, str(folder), name)
        about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        tag_version(client, registered.name, registered.version, {f"{TAG}{name}": json.dumps(about, sort_keys=True)})
        logger.info("%s version %d has the export %s: %s", registered.name, registered.version, name, _described(about))


def _export(
    model: "SentenceTransformer", name: ExportName, folder: Path, queries: list[str], documents: list[str]
) -> None:
    from vocabgraft.export.to_onnx import export_onnx

    precision = cast("Precision", name.partition("_")[2] or "float32")
    export_onnx(model, folder, precision, queries, documents)


def _described(about: dict[str, Any]) -> str:
    agreement = about["agreement"]
    return (
        f"{about['megabytes']} MB, cosine to the model {agreement['cosine_mean']:.4f} on average and "
        f"{agreement['cosine_min']:.4f} at least, {100 * agreement['nearest_kept']:.1f} % of the nearest texts kept"
    )
