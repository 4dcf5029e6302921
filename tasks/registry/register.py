"""Registers a model in MLflow: one run with everything about it, and one version per content."""

import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, infer_signature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from tasks.registry.lookup import (
    DIGEST_TAG,
    EXPERIMENT,
    Registered,
    described,
    find_by_digest,
    metric_name,
    store_errors,
)
from vocabgraft.printable import printable, printable_parts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

# Packages that a service needs to load the model; neither PEFT nor this project.
REQUIRED_TO_LOAD = ("sentence-transformers", "transformers", "tokenizers", "torch", "safetensors", "numpy")
EXAMPLE = ("a short sentence", "another one")
# Tags of registration runs, by which a killed registration is found.
KIND_TAG, REGISTRATION_KIND, NAME_TAG = "vocabgraft.kind", "registration", "vocabgraft.model"
CONTEXTS = {"train": "training", "validation": "validation", "test": "test"}
# Message of SQLite and PostgreSQL for a row that another writer has added.
TAKEN = re.compile("UNIQUE constraint|duplicate key", re.IGNORECASE)
TRIES = 10
# MLflow's limits: characters of a dataset's digest and of a parameter, entries per call.
DIGEST_CHARACTERS, PARAM_CHARACTERS, PARAMS_AT_ONCE, METRICS_AT_ONCE = 36, 6000, 100, 1000


@dataclass(frozen=True)
class DataSplit:
    """A split of a dataset as MLflow records it: its path in the project, and the digest of its content."""

    name: str
    split: str
    path: Path
    digest: str
    rows: int
    columns: Sequence[str]


@dataclass(frozen=True)
class RunRecord:
    """Contents of a registration's MLflow run, apart from the model.

    Attributes:
        params: the project's parameters by name.
        metrics: metrics of the model, linked to it.
        curve: training curve, one entry per step.
        artifacts: files and folders; a folder keeps its name.
        tags: tags of the run and of the version.
        splits: splits of the datasets.
        card: model card in Markdown.
    """

    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    curve: Sequence[Mapping[str, float]]
    artifacts: Sequence[Path]
    tags: Mapping[str, str]
    splits: Sequence[DataSplit] = field(default_factory=tuple)
    card: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", printable_parts({key: str(value) for key, value in self.params.items()}))
        object.__setattr__(self, "tags", printable_parts(dict(self.tags)))
        object.__setattr__(self, "card", printable(self.card))


def log_and_register(client: MlflowClient, name: str, model: "SentenceTransformer", record: RunRecord) -> Registered:
    """Log one run with everything about a model, and register the model with its tags in one call.

    If several processes register the same content at the same time, the lowest version stays and the others delete
    theirs. A version's number is given out only when all lower ones can be read, so all see the same lowest version.

    Returns:
        The version with this content.

    Raises:
        VocabgraftError: if the store or the registry refuses.
    """
    with store_errors(f"MLflow refused the registration of {name!r}"):
        mlflow.set_experiment(EXPERIMENT)
        tags = {**record.tags, KIND_TAG: REGISTRATION_KIND, NAME_TAG: name}
        with mlflow.start_run(tags=tags, run_name=f"{name} {record.tags[DIGEST_TAG][:8]}") as run:
            _log_record(client, run.info.run_id, record)
            logged = mlflow.sentence_transformers.log_model(
                model,
                name="model",
                signature=_signature(model),
                input_example=list(EXAMPLE),
                pip_requirements=[f"{package}=={_plain_version(package)}" for package in REQUIRED_TO_LOAD],
                metadata={DIGEST_TAG: record.tags[DIGEST_TAG]},
                tags={DIGEST_TAG: record.tags[DIGEST_TAG]},
            )
            _log_metrics(client, run.info.run_id, logged.model_id, record)
        made = described(client, mlflow.register_model(logged.model_uri, name, tags=dict(record.tags)))
        describe(client, made, record.card)
        first = find_by_digest(client, name, record.tags[DIGEST_TAG]) or made
        if first.version != made.version:
            logger.info("%s version %d was registered at the same time; it stays", name, first.version)
            remove_version(client, made)
        return first


def describe(client: MlflowClient, made: Registered, card: str) -> None:
    """Set a model card as the description of a version."""
    client.update_model_version(made.name, str(made.version), printable(page_text(card))[:PARAM_CHARACTERS])


def page_text(card: str) -> str:
    """A card as MLflow's pages show it: without the front matter, which they would render as text."""
    lines = card.splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines) if line.strip() == "---"]
    return "".join(lines[ends[1] + 1 :]).lstrip() if ends[:1] == [0] and len(ends) > 1 else card


def remove_version(client: MlflowClient, made: Registered) -> None:
    """Delete a version with its logged model, its run and their files."""
    with store_errors(f"{made.name} version {made.version} cannot be deleted"):
        client.delete_model_version(made.name, str(made.version))
        _remove_logged_model(client, made.source.removeprefix("models:/"))
        if made.run_id:
            remove_run(client, made.run_id)


def remove_run(client: MlflowClient, run_id: str) -> None:
    """Delete a run with its models and their files, if they still exist."""
    run = client.get_run(run_id)
    for output in run.outputs.model_outputs if run.outputs else ():
        _remove_logged_model(client, output.model_id)
    _delete_files(run.info.artifact_uri)
    if run.info.lifecycle_stage == LifecycleStage.ACTIVE:
        client.delete_run(run_id)


def log_report(
    client: MlflowClient,
    name: str,
    model_version: int,
    path: Path,
    docs: Path | None = None,
    plots: Mapping[str, str] | None = None,
) -> None:
    """Add the report and its plots to the artifacts of a version's run, and the Data Docs if they are missing there.

    Args:
        client: the registry's client.
        name: of the registered model.
        model_version: its version.
        path: the report.
        docs: the folder of the Data Docs.
        plots: SVG documents by name, logged as `plots/NAME.svg`.

    Raises:
        VocabgraftError: if the store refuses, or the run was deleted.
    """
    with store_errors(f"MLflow refused {path} for {name} version {model_version}"):
        run_id = described(client, client.get_model_version(name, str(model_version))).run_id
        client.log_artifact(run_id, str(path))
        if docs is not None and not client.list_artifacts(run_id, docs.name):
            client.log_artifacts(run_id, str(docs), docs.name)
        for plot, svg in (plots or {}).items():
            client.log_text(run_id, svg, f"plots/{plot}.svg")


def has_files(client: MlflowClient, made: Registered) -> bool:
    """Whether the files of a version are at the location in the store."""
    if not made.source.startswith("models:/m-"):
        return True
    with store_errors(f"the files of {made.name} version {made.version} cannot be listed"):
        location = client.get_logged_model(made.source.removeprefix("models:/")).artifact_location
        return bool(get_artifact_repository(location).list_artifacts())


@contextmanager
def artifact_of(client: MlflowClient, made: Registered, name: str) -> Iterator[Path | None]:
    """A file in a folder of a version's run, downloaded temporarily; None if no folder has it."""
    with tempfile.TemporaryDirectory() as folder:
        with store_errors(f"{name} of {made.name} version {made.version} cannot be read"):
            folders = (entry.path for entry in client.list_artifacts(made.run_id) if entry.is_dir)
            paths = (entry.path for place in folders for entry in client.list_artifacts(made.run_id, place))
            path = next((path for path in paths if Path(path).name == name), None)
            found = Path(client.download_artifacts(made.run_id, path, folder)) if path else None
        yield found


def _remove_logged_model(client: MlflowClient, model_id: str) -> None:
    try:
        location = client.get_logged_model(model_id).artifact_location
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            # Already deleted, with its version or by hand.
            return
        raise
    _delete_files(location)
    client.delete_logged_model(model_id)


def _delete_files(location: str) -> None:
    files = get_artifact_repository(location)
    # Deleting a folder that does not exist would fail.
    if files.list_artifacts():
        files.delete_artifacts()  # type: ignore[no-untyped-call]


def _signature(model: "SentenceTransformer") -> ModelSignature:
    example = list(EXAMPLE)
    return infer_signature(example, model.encode(example, show_progress_bar=False))


def _log_record(client: MlflowClient, run_id: str, record: RunRecord) -> None:
    """Log parameters, curve, datasets and artifacts."""
    params = [Param(key, value[:PARAM_CHARACTERS]) for key, value in record.params.items()]
    client.log_batch(run_id, tags=[RunTag("mlflow.note.content", page_text(record.card) or "vocabgraft registration")])
    for start in range(0, len(params), PARAMS_AT_ONCE):
        client.log_batch(run_id, params=params[start : start + PARAMS_AT_ONCE])
    _log_in_batches(client, run_id, list(_curve_metrics(record.curve)))
    if record.splits:
        _log_datasets(client, run_id, record.splits)
    for path in record.artifacts:
        if path.is_dir():
            client.log_artifacts(run_id, str(path), path.name)
        else:
            client.log_artifact(run_id, str(path))
    if record.card:
        client.log_text(run_id, record.card, "model_card.md")


def _log_metrics(client: MlflowClient, run_id: str, model_id: str, record: RunRecord) -> None:
    """Log metrics for the run and for the logged model."""
    metrics = [
        Metric(metric_name(key), value, 0, 0, model_id=model_id, run_id=run_id) for key, value in record.metrics.items()
    ]
    _log_in_batches(client, run_id, metrics)


def _log_in_batches(client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> None:
    for start in range(0, len(metrics), METRICS_AT_ONCE):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_AT_ONCE])


def _log_datasets(client: MlflowClient, run_id: str, splits: Sequence[DataSplit]) -> None:
    """Link the splits to the run, with retries if a concurrent registration writes the same ones.

    MLflow looks for a dataset and then adds it, so one of two concurrent calls fails; its next try finds the dataset.
    """
    for left in reversed(range(TRIES)):
        try:
            client.log_inputs(run_id, [_dataset_input(split) for split in splits])
        except MlflowException as error:
            if not left or not TAKEN.search(str(error)):
                raise
        else:
            return


def _curve_metrics(curve: Sequence[Mapping[str, float]]) -> Iterator[Metric]:
    """Losses and learning rates by step; steps of later phases continue the count."""
    before, last, phase = 0, 0, 1.0
    for point in curve:
        if point.get("phase", 1) != phase:
            before, phase = before + last, point["phase"]
        last = int(point["step"])
        for key in ("loss", "learning_rate"):
            if key in point:
                yield Metric(f"train/{key}", float(point[key]), 0, before + last)


def rows_of_splits(run: Run) -> dict[str, tuple[int, str]]:
    """By `DATASET.SPLIT`, the number of rows and the digest that a run has on record."""
    inputs = run.inputs.dataset_inputs if run.inputs else ()
    found = {entry.dataset.name: (entry.dataset.profile, entry.dataset.digest) for entry in inputs}
    return {name: (json.loads(profile or "{}").get("num_rows", 0), digest) for name, (profile, digest) in found.items()}


def _dataset_input(split: DataSplit) -> DatasetInput:
    schema = {"mlflow_colspec": [{"name": name, "type": "string", "required": True} for name in split.columns]}
    dataset = Dataset(
        name=f"{split.name}.{split.split}",
        digest=split.digest[:DIGEST_CHARACTERS],
        source_type="local",
        source=json.dumps({"uri": split.path.as_posix()}),
        schema=json.dumps(schema),
        profile=json.dumps({"num_rows": split.rows}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", CONTEXTS[split.split])])


def _plain_version(package: str) -> str:
    # The user's package index may lack a local build such as +cpu.
    return version(package).partition("+")[0]
