"""Looking up models in the MLflow registry, and figures that are logged while they come.

What changes the registry is in `tasks.registry.register` and `tasks.registry.versions`; MLflow is imported in these
three alone.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from tasks.registry.store import first_line, masked, patient, require_database, sqlite_made_by_one, store_uri, unusable
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.saving import PACK_FOLDER

EXPERIMENT = "vocabgraft"
CHALLENGER, CHAMPION, PREVIOUS_CHAMPION = "challenger", "champion", "previous_champion"
# Of the new champion while both other aliases are being set.
NEXT_CHAMPION = "next_champion"
DIGEST_TAG = "content_digest"
# Where MLflow's flavor puts the plain sentence-transformers folder inside a logged model.
MODEL_SUBFOLDER = "model.sentence_transformer"
STORE_ERRORS = (MlflowException, SQLAlchemyError, OSError)
# MLflow's own 7 retries with a factor of 2 wait 4 minutes for a server that is down. A question before the work starts
# is asked twice; in the middle of it about a minute is waited, which a restart of the server takes.
RETRIES_AT_START, RETRIES = 1, 5
RETRIES_VARIABLE = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


Client = MlflowClient


@dataclass(frozen=True)
class Registered:
    """A version in the registry, with its aliases."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    run_id: str = ""
    # The time of its registration, in milliseconds since 1970.
    created: int = 0
    # The address of the logged model, `models:/m-...`.
    source: str = ""


def connect(retries: int | None = None) -> MlflowClient:
    """A client for `MLFLOW_TRACKING_URI`, by default the SQLite store beside the project.

    Args:
        retries: of this first call to a tracking server, with growing waits; by default as of every later one,
            `MLFLOW_HTTP_REQUEST_MAX_RETRIES` or 5.

    Raises:
        VocabgraftError: when the store cannot be reached.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # Its bars would stand between the lines of a stage, one for each small file.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = store_uri()
    require_database(uri)
    os.environ.setdefault(RETRIES_VARIABLE, str(RETRIES))
    with _variable(RETRIES_VARIABLE, os.environ[RETRIES_VARIABLE] if retries is None else str(retries)):
        try:
            mlflow.set_tracking_uri(patient(uri))
            with sqlite_made_by_one(uri):
                client = MlflowClient()
                client.search_experiments(max_results=1)
        except STORE_ERRORS as error:
            raise unusable(uri, error) from error
    return client


@contextmanager
def store_errors(doing: str) -> Iterator[None]:
    """Turn what the store refuses into an error that says what was being done."""
    try:
        yield
    except STORE_ERRORS as error:
        raise VocabgraftError(masked(f"{doing}: {explained(error)}")) from error


def explained(error: Exception) -> str:
    """The first line of an error, with the remedy of those that a person can mend."""
    said = first_line(str(getattr(error, "message", "") or error))
    remedies = {
        ("disk is full", "No space left"): "free some space and run again",
        ("readonly database", "Permission denied", "Read-only file system"): "give permission to write and run again",
        (
            "Max retries exceeded",
            "Connection refused",
        ): "start the tracking server and run again; what is done stays done",
    }
    return next(
        (f"{said}; {remedy}" for signs, remedy in remedies.items() if any(sign in str(error) for sign in signs)), said
    )


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """An environment variable for a while; MLflow takes its retries from nowhere else."""
    before = os.environ[name]
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ[name] = before


def resolve_version(uri: str) -> str:
    """`models:/NAME@ALIAS` or `models:/NAME/VERSION` as `models:/NAME/VERSION`."""
    name, separator, alias = uri.removeprefix("models:/").partition("@")
    if not separator:
        return uri
    try:
        found = connect().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        raise VocabgraftError(f"{uri} is not in the registry: {explained(error)}") from error
    return f"models:/{name}/{found.version}"


def download_model(uri: str) -> Path:
    """The plain sentence-transformers folder of a registered version."""
    connect()
    try:
        local = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (MlflowException, OSError) as error:
        raise VocabgraftError(f"{uri} cannot be read from the registry: {explained(error)}") from error
    folder = local / MODEL_SUBFOLDER
    if not folder.is_dir():
        raise VocabgraftError(f"{uri} is no sentence-transformers model: {MODEL_SUBFOLDER} is missing in it")
    return folder


def download_pack(uri: str) -> Path:
    """The folder of the vocabulary pack of a registered version.

    Raises:
        VocabgraftError: when the version is not there or was registered without a pack.
    """
    name, _, number = resolve_version(uri).removeprefix("models:/").rpartition("/")
    client = connect()
    try:
        run = str(client.get_model_version(name, number).run_id)
        there = {entry.path for entry in client.list_artifacts(run)}
        if PACK_FOLDER in there:
            return Path(mlflow.artifacts.download_artifacts(run_id=run, artifact_path=PACK_FOLDER))
    except (MlflowException, OSError) as error:
        raise VocabgraftError(f"{uri} cannot be read from the registry: {error}") from error
    raise VocabgraftError(
        f"{uri} was registered without a vocabulary pack (an older version, method full, or layers of its own); its "
        f"run has {', '.join(sorted(there)) or 'nothing'}"
    )


def digest_of_registered(uri: str) -> str | None:
    """The content digest that a registered version is tagged with; None for one that this project did not register."""
    name, _, number = resolve_version(uri).removeprefix("models:/").rpartition("/")
    try:
        return connect().get_model_version(name, number).tags.get(DIGEST_TAG)
    except MlflowException as error:
        raise VocabgraftError(f"{uri} is not in the registry: {explained(error)}") from error


def find_by_digest(client: MlflowClient, name: str, digest: str) -> Registered | None:
    """The first version with this content, or None; a later one is a registration at the same time, soon deleted."""
    with store_errors("the registry cannot be read"):
        # MLflow's filters cannot quote every name that its registry takes, so names are compared here.
        found = all_pages(
            lambda token: client.search_model_versions(f"tags.{DIGEST_TAG} = '{digest}'", page_token=token)
        )
        versions = [entry for entry in found if entry.name == name]
        first = min(versions, key=lambda entry: int(entry.version), default=None)
        return described(client, first) if first else None


def all_pages(search: Callable[[str | None], Any]) -> list[Any]:
    """Everything that a search of MLflow finds, page after page."""
    page = search(None)
    found = list(page)
    while page.token:
        page = search(page.token)
        found += page
    return found


def find_by_alias(client: MlflowClient, name: str, alias: str) -> Registered | None:
    """The version that an alias names, or None."""
    try:
        return described(client, client.get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise VocabgraftError(masked(f"the registry cannot be read: {explained(error)}")) from error
    except STORE_ERRORS as error:
        raise VocabgraftError(masked(f"the registry cannot be read: {explained(error)}")) from error


def figures_of(client: MlflowClient, registered: Registered) -> dict[str, float]:
    """What was measured of a version, as its run has it; empty where the version names no run.

    Raises:
        VocabgraftError: when the run cannot be read.
    """
    with store_errors("the registry cannot be read"):
        run_id = client.get_model_version(registered.name, str(registered.version)).run_id
        return dict(client.get_run(run_id).data.metrics) if run_id else {}


def experiment_id(client: MlflowClient) -> str:
    """The experiment in which this project's runs are, made where it is missing."""
    found = client.get_experiment_by_name(EXPERIMENT)
    return str(found.experiment_id if found else client.create_experiment(EXPERIMENT))


@contextmanager
def live_run(name: str, params: Mapping[str, Any]) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A run of its own; what is yielded logs the figures of a step into it at once.

    A store that fails later on is told of once and does not stop what is measured.
    """
    client = connect()
    run = client.create_run(experiment_id(client), run_name=name, tags={"vocabgraft.kind": "live metrics"}).info.run_id
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


def described(client: MlflowClient, found: ModelVersion) -> Registered:
    """A version as MLflow's search gives it, which lacks its aliases, with them."""
    full = client.get_model_version(found.name, found.version)
    return Registered(
        full.name,
        int(full.version),
        tuple(sorted(full.aliases)),
        dict(full.tags),
        full.run_id or "",
        full.creation_timestamp or 0,
        full.source or "",
    )
