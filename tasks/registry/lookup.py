"""Looks up models in the MLflow registry, and logs live metrics.

`tasks.registry.register` and `tasks.registry.versions` change the registry. Only these three modules import MLflow.
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
# Alias of the new champion while the other two aliases are being set.
NEXT_CHAMPION = "next_champion"
DIGEST_TAG = "content_digest"
# Where MLflow's flavor puts the plain sentence-transformers folder inside a logged model.
MODEL_SUBFOLDER = "model.sentence_transformer"
STORE_ERRORS = (MlflowException, SQLAlchemyError, OSError)
# MLflow's default of 7 retries with a factor of 2 waits 4 minutes for a server that is down. Before the work starts
# there is one retry. During the work the waits add up to about a minute, enough for a restart of the server.
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
    # Time of its registration, in milliseconds since 1970.
    created: int = 0
    # URI of the logged model, `models:/m-...`.
    source: str = ""


def connect(retries: int | None = None) -> MlflowClient:
    """A client for `MLFLOW_TRACKING_URI`, by default the SQLite store in the project.

    Args:
        retries: retries of this first call to a tracking server, with growing waits; by default, as for all later
            calls, `MLFLOW_HTTP_REQUEST_MAX_RETRIES` or 5.

    Raises:
        VocabgraftError: if the store cannot be reached.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # MLflow would print a progress bar between a stage's lines for each small file.
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
    """Turn errors of the store into one that begins with the failed operation."""
    try:
        yield
    except STORE_ERRORS as error:
        raise VocabgraftError(masked(f"{doing}: {explained(error)}")) from error


def explained(error: Exception) -> str:
    """The first line of an error, with a remedy if there is one."""
    said = first_line(str(getattr(error, "message", "") or error))
    remedies = {
        ("disk is full", "No space left"): "free some space and run again",
        ("readonly database", "Permission denied", "Read-only file system"): "give permission to write and run again",
        (
            "Max retries exceeded",
            "Connection refused",
        ): "start the tracking server and run again; finished stages do not run again",
    }
    return next(
        (f"{said}; {remedy}" for signs, remedy in remedies.items() if any(sign in str(error) for sign in signs)), said
    )


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable temporarily; MLflow reads its retries from nowhere else."""
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
        raise VocabgraftError(f"{uri} is not a sentence-transformers model: it has no {MODEL_SUBFOLDER}")
    return folder


def download_pack(uri: str) -> Path:
    """The folder of the vocabulary pack of a registered version.

    Raises:
        VocabgraftError: if the version does not exist or was registered without a pack.
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
        f"{uri} was registered without a vocabulary pack (an older version, method full, or your own layers); its "
        f"run has {', '.join(sorted(there)) or 'nothing'}"
    )


def digest_of_registered(uri: str) -> str | None:
    """The content digest in a version's tags; None for a version that this project did not register."""
    name, _, number = resolve_version(uri).removeprefix("models:/").rpartition("/")
    try:
        return connect().get_model_version(name, number).tags.get(DIGEST_TAG)
    except MlflowException as error:
        raise VocabgraftError(f"{uri} is not in the registry: {explained(error)}") from error


def find_by_digest(client: MlflowClient, name: str, digest: str) -> Registered | None:
    """The first version with this content, or None. A later one comes from a concurrent registration, soon deleted."""
    with store_errors("the registry cannot be read"):
        # MLflow's filters cannot quote every valid name, so names are compared here.
        found = all_pages(
            lambda token: client.search_model_versions(f"tags.{DIGEST_TAG} = '{digest}'", page_token=token)
        )
        versions = [entry for entry in found if entry.name == name]
        first = min(versions, key=lambda entry: int(entry.version), default=None)
        return described(client, first) if first else None


def all_pages(search: Callable[[str | None], Any]) -> list[Any]:
    """All results of a search of MLflow, page by page."""
    page = search(None)
    found = list(page)
    while page.token:
        page = search(page.token)
        found += page
    return found


def find_by_alias(client: MlflowClient, name: str, alias: str) -> Registered | None:
    """The version with an alias, or None."""
    try:
        return described(client, client.get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise VocabgraftError(masked(f"the registry cannot be read: {explained(error)}")) from error
    except STORE_ERRORS as error:
        raise VocabgraftError(masked(f"the registry cannot be read: {explained(error)}")) from error


def figures_of(client: MlflowClient, registered: Registered) -> dict[str, float]:
    """The metrics of a version's run; empty if it has none.

    Raises:
        VocabgraftError: if the run cannot be read.
    """
    with store_errors("the registry cannot be read"):
        run_id = client.get_model_version(registered.name, str(registered.version)).run_id
        return dict(client.get_run(run_id).data.metrics) if run_id else {}


def experiment_id(client: MlflowClient) -> str:
    """The id of this project's experiment, which is created if it is missing."""
    found = client.get_experiment_by_name(EXPERIMENT)
    return str(found.experiment_id if found else client.create_experiment(EXPERIMENT))


@contextmanager
def live_run(name: str, params: Mapping[str, Any]) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A separate run for live metrics; yields a function that logs the metrics of a step at once.

    If the store fails later, there is one warning, and the training continues.
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
            logging.getLogger(__name__).warning("live metrics stop here, the training continues: %s", error)

    status = "FAILED"
    try:
        yield log
        status = "FINISHED"
    finally:
        if not failed:
            client.set_terminated(run, status)


def metric_name(name: str) -> str:
    """A name that MLflow accepts: `terms_cosine_mrr@10` becomes `terms_cosine_mrr_at_10`."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"))


def described(client: MlflowClient, found: ModelVersion) -> Registered:
    """A version with its aliases, which MLflow's search leaves out."""
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
