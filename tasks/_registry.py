"""The MLflow tracking store and model registry. The one module that imports MLflow."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from vocabgraft.errors import VocabgraftError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

EXPERIMENT = "vocabgraft"
DEFAULT_STORE = "sqlite:///mlflow.db"
CHALLENGER, CHAMPION, PREVIOUS_CHAMPION = "challenger", "champion", "previous_champion"
DIGEST_TAG = "content_digest"
# Where MLflow's flavor puts the plain sentence-transformers folder inside a logged model.
MODEL_SUBFOLDER = "model.sentence_transformer"
# What a service needs to load the model; PEFT and this project are not among it.
REQUIRED_TO_LOAD = ("sentence-transformers", "transformers", "tokenizers", "torch", "numpy")


@dataclass(frozen=True)
class RunRecord:
    """What an MLflow run of a registration holds beside the model."""

    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    curve: Sequence[Mapping[str, float]]
    artifacts: Sequence[Path]
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Registered:
    """A version in the registry, with its aliases."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]


def connect() -> MlflowClient:
    """A client for `MLFLOW_TRACKING_URI`, by default the SQLite store beside the project.

    Raises:
        VocabgraftError: when the store cannot be reached.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
    mlflow.set_tracking_uri(uri)
    try:
        client = MlflowClient()
        client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError) as error:
        raise VocabgraftError(f"the MLflow store at {uri} cannot be used: {error}") from error
    return client


def resolve_version(uri: str) -> str:
    """`models:/NAME@ALIAS` or `models:/NAME/VERSION` as `models:/NAME/VERSION`."""
    name, separator, alias = uri.removeprefix("models:/").partition("@")
    if not separator:
        return uri
    try:
        found = connect().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        raise VocabgraftError(f"{uri} is not in the registry: {error.message}") from error
    return f"models:/{name}/{found.version}"


def download_model(uri: str) -> Path:
    """The plain sentence-transformers folder of a registered version."""
    connect()
    try:
        local = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (MlflowException, OSError) as error:
        raise VocabgraftError(f"{uri} cannot be read from the registry: {error}") from error
    folder = local / MODEL_SUBFOLDER
    if not folder.is_dir():
        raise VocabgraftError(f"{uri} is no sentence-transformers model: {MODEL_SUBFOLDER} is missing in it")
    return folder


def digest_of_registered(uri: str) -> str | None:
    """The content digest that a registered version is tagged with; None for one that this project did not register."""
    name, _, number = resolve_version(uri).removeprefix("models:/").rpartition("/")
    try:
        return connect().get_model_version(name, number).tags.get(DIGEST_TAG)
    except MlflowException as error:
        raise VocabgraftError(f"{uri} is not in the registry: {error.message}") from error


def find_by_digest(client: MlflowClient, name: str, digest: str) -> Registered | None:
    """The newest version with this content, or None."""
    try:
        # MLflow's filters cannot quote every name that its registry takes, so names are compared here.
        found = client.search_model_versions(f"tags.{DIGEST_TAG} = '{digest}'")
    except MlflowException as error:
        raise VocabgraftError(f"the registry cannot be read: {error.message}") from error
    versions = [entry for entry in found if entry.name == name]
    newest = max(versions, key=lambda entry: int(entry.version), default=None)
    return _described(client, newest) if newest else None


def find_by_alias(client: MlflowClient, name: str, alias: str) -> Registered | None:
    """The version that an alias names, or None."""
    try:
        return _described(client, client.get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise VocabgraftError(f"the registry cannot be read: {error.message}") from error


def figures_of(client: MlflowClient, registered: Registered) -> dict[str, float]:
    """What was measured of a version, as its run has it; empty where the version names no run.

    Raises:
        VocabgraftError: when the run cannot be read.
    """
    try:
        run_id = client.get_model_version(registered.name, str(registered.version)).run_id
        return dict(client.get_run(run_id).data.metrics) if run_id else {}
    except MlflowException as error:
        raise VocabgraftError(f"the registry cannot be read: {error.message}") from error


def log_and_register(client: MlflowClient, name: str, model: "SentenceTransformer", record: RunRecord) -> Registered:
    """Log one run with everything of it and register its model, the tags set in the same call.

    Raises:
        VocabgraftError: when the store or the registry refuses.
    """
    example = ["a short sentence", "another one"]
    try:
        mlflow.set_experiment(EXPERIMENT)
        with mlflow.start_run(tags=dict(record.tags)) as run:
            _log_figures(client, run.info.run_id, record)
            for path in record.artifacts:
                log = mlflow.log_artifacts if path.is_dir() else mlflow.log_artifact
                log(str(path), path.name) if path.is_dir() else log(str(path))
            logged = mlflow.sentence_transformers.log_model(
                model,
                name="model",
                signature=mlflow.models.infer_signature(example, model.encode(example, show_progress_bar=False)),
                input_example=example,
                pip_requirements=[f"{package}=={_plain_version(package)}" for package in REQUIRED_TO_LOAD],
                metadata={DIGEST_TAG: record.tags[DIGEST_TAG]},
            )
        registered = mlflow.register_model(logged.model_uri, name, tags=dict(record.tags))
    except MlflowException as error:
        raise VocabgraftError(f"MLflow refused the registration of {name!r}: {error.message}") from error
    return _described(client, registered)


def log_report(client: MlflowClient, name: str, model_version: int, path: Path) -> None:
    """Put a file among the artifacts of the run that made a version, in place of one of the same name.

    Raises:
        VocabgraftError: when the store refuses, or has deleted the run.
    """
    try:
        run_id = client.get_model_version(name, str(model_version)).run_id
        client.log_artifact(run_id, str(path))
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise VocabgraftError(f"MLflow does not take {path} for {name} version {model_version}: {error}") from error


@contextmanager
def live_run(name: str, params: Mapping[str, Any]) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A run of its own; what is yielded logs the figures of a step into it at once.

    A store that fails later on is told of once and does not stop what is measured.
    """
    client = connect()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    run = client.create_run(number, run_name=name, tags={"vocabgraft.kind": "live metrics"}).info.run_id
    client.log_batch(run, params=[Param(key, str(value)[:6000]) for key, value in params.items()])
    failed = False

    def log(step: int, figures: Mapping[str, float]) -> None:
        nonlocal failed
        if failed:
            return
        now = int(time.time() * 1000)
        try:
            client.log_batch(run, [Metric(metric_name(key), value, now, step) for key, value in figures.items()])
        except (MlflowException, SQLAlchemyError) as error:
            failed = True
            logging.getLogger(__name__).warning("live metrics stop here, the training goes on: %s", error)

    status = "FAILED"
    try:
        yield log
        status = "FINISHED"
    finally:
        if not failed:
            client.set_terminated(run, status)


def metric_name(name: str) -> str:
    """A name that MLflow takes: `terms_cosine_mrr@10` becomes `terms_cosine_mrr_at_10`."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"))


def set_alias(client: MlflowClient, name: str, alias: str, model_version: int) -> None:
    """Point an alias at a version."""
    client.set_registered_model_alias(name, alias, str(model_version))


def tag_version(client: MlflowClient, name: str, model_version: int, tags: Mapping[str, str]) -> None:
    """Add tags to a version."""
    for key, value in tags.items():
        client.set_model_version_tag(name, str(model_version), key, value)


def _log_figures(client: MlflowClient, run_id: str, record: RunRecord) -> None:
    metrics = [Metric(key, value, 0, 0) for key, value in record.metrics.items()]
    curve = [
        Metric(f"train/{key}", float(value), 0, int(point["step"]))
        for point in record.curve
        for key, value in point.items()
        if key in ("loss", "learning_rate")
    ]
    params = [Param(key, str(value)[:6000]) for key, value in record.params.items()]
    client.log_batch(run_id, params=params[:100], tags=[RunTag("mlflow.note.content", "vocabgraft registration")])
    for start in range(0, len(params[100:]), 100):
        client.log_batch(run_id, params=params[100:][start : start + 100])
    for start in range(0, len(metrics + curve), 1000):
        client.log_batch(run_id, metrics=(metrics + curve)[start : start + 1000])


def _described(client: MlflowClient, found: ModelVersion) -> Registered:
    full = client.get_model_version(found.name, found.version)
    return Registered(full.name, int(full.version), tuple(sorted(full.aliases)), dict(full.tags))


def _plain_version(package: str) -> str:
    # A local version such as +cpu names a build that the user's index need not have.
    return version(package).partition("+")[0]
