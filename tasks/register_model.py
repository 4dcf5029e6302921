"""Stage register_model: registers the merged model in MLflow, once per content, and promotes it by its gates."""

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.registry.champion import ITEMS_TAG, WIDTH_TAG, Candidate, Rival, compare_with_champion, with_widths
from tasks.registry.changes import CHANGES_TAG, changes, of_this_run, recorded, summary
from tasks.registry.exports import log_exports, made_exports, missing_exports
from tasks.registry.gate_results import GateResult, blocking, decision_of, evidence_of, told_with_verdict
from tasks.registry.gates import Measured, benefit_of, gates_of, own_module_gates, speed_of
from tasks.registry.lineage import CODE_TAG, data_splits, items_digest, lineage_tags
from tasks.registry.lookup import (
    CHALLENGER,
    CHAMPION,
    DIGEST_TAG,
    PREVIOUS_CHAMPION,
    Client,
    Registered,
    connect,
    find_by_alias,
    find_by_digest,
)
from tasks.registry.model_card import UNKNOWN_LICENCE, Facts, licence_of, write_card
from tasks.registry.read_back import READ_BACK_TAG, read_back
from tasks.registry.register import RunRecord, log_and_register, remove_version
from tasks.registry.versions import (
    DECISION_TAG,
    EVIDENCE_TAG,
    REASON_TAG,
    ChampionMovedError,
    make_champion,
    replace_card,
    require_champion,
    set_alias,
    tag_version,
)
from tasks.support.models import find_base
from tasks.support.stage import run_stage
from vocabgraft.checks.result import count_verdicts
from vocabgraft.config.params import load_params
from vocabgraft.config.stages import BaseParams, RegisterModelParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder.remote_code import code_hashes, describe_code, keep_code
from vocabgraft.models.base import carried_types
from vocabgraft.models.gate import gate_types
from vocabgraft.models.saving import PACK_FOLDER
from vocabgraft.storage.artifacts import new_folder, read_json, read_manifest, require_artifact, write_json
from vocabgraft.tokens.tokenizer import read_tokens

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

# MLflow's names must not contain these characters. A mapping whose keys contain one (a pattern of module names, say)
# becomes one parameter.
UNNAMEABLE = re.compile(r"[^\w\-. /:@]")
RECORD = Path("reports/registration.json")
# Written by evaluate_model and not tracked by DVC.
SPEED = Path("reports/speed.json")
BENEFIT_TAG = "benefit"
# The champion can change while the model is compared with it; then it is compared with the new champion.
TRIES = 3


@dataclass(frozen=True)
class Made:
    """Outputs of earlier stages for the model to register, and whether code in its folder may run."""

    merged: Path
    adapter: Path
    checks: Path
    evaluation: Path
    base_identity: Path
    datasets: Path
    tokens: Path
    trust_remote_code: bool


@dataclass(frozen=True)
class Decision:
    """The decision on a version.

    Attributes:
        gates: result of every gate.
        rival: the champion that it was compared with.
        champion: whether the version is the champion now.
        said: the decision in a sentence.
        evidence: evidence for its benefit.
        reason: reason given by the person who promoted it, if any.
    """

    gates: list[GateResult]
    rival: Rival | None
    champion: bool
    said: str
    evidence: str
    reason: str

    @property
    def tags(self) -> dict[str, str]:
        """The tags of the version."""
        gates = json.dumps([gate.as_json() for gate in self.gates])
        return {"gates": gates, DECISION_TAG: self.said, EVIDENCE_TAG: self.evidence, REASON_TAG: self.reason}

    def as_json(self) -> dict[str, Any]:
        """The decision for the record of the registration."""
        rival = self.rival
        beside = None if rival is None else {"version": rival.version, "how": rival.how, "figures": rival.figures}
        return {
            "champion": self.champion,
            "gates": [gate.as_json() for gate in self.gates],
            "decision": self.said,
            "evidence": self.evidence,
            "compared_with": beside,
        }


def register_model(
    merged: Path,
    adapter: Path,
    checks: Path,
    evaluation: Path,
    base_identity: Path,
    datasets: Path,
    tokens: Path,
    out: Path,
    params: RegisterModelParams,
    base: BaseParams,
) -> None:
    """Register the model unless its content is registered already, read it back, then decide on its aliases."""
    digest = model_digest(merged)
    if os.environ.get("DVC_EXP_NAME"):
        logger.info("inside an experiment (%s): nothing is registered", os.environ["DVC_EXP_NAME"])
    else:
        trusted = base.trust_remote_code
        made = Made(merged, adapter, checks, evaluation, base_identity, datasets, tokens, trusted)
        lineage = lineage_tags(base_identity, datasets, register_model.__name__) | _gate_tag(merged)
        _register(params, made, {DIGEST_TAG: digest, ITEMS_TAG: items_digest(datasets), **lineage})
    with new_folder(out) as work:
        write_json(work / "registration.json", {"name": params.name, DIGEST_TAG: digest})


def model_digest(merged: Path) -> str:
    """The content digest of the merged model, as its manifest has it."""
    return read_manifest(require_artifact(merged))[0]


def _register(params: RegisterModelParams, made: Made, tags: dict[str, str]) -> None:
    measured = Measured.read(made.evaluation)
    passed = bool(read_json(require_artifact(made.checks))["passed"])
    if not passed:
        raise VocabgraftError(f"{made.checks} says that a check failed, so the model is not registered")
    client = connect()
    registered = find_by_digest(client, params.name, tags[DIGEST_TAG])
    lacking = missing_exports(client, registered, params.exports)
    found = _changes(client, params.name, made, tags)
    tags |= {CHANGES_TAG: summary(found)} if found else {}
    evidence = _evidence(client, params, measured, registered)
    card = write_card(_facts(params, made, measured, tags, evidence, found))
    new = registered is None
    # Exports come first, so that one that cannot be made leaves no version.
    with made_exports(_load(made) if lacking else None, lacking, made.datasets) as exports:
        if registered is None:
            registered = _write(client, params, made, measured, {**tags, **_benefit_tag(measured, params)}, card)
            logger.info("registered %s version %d", params.name, registered.version)
        else:
            logger.info("%s version %d has this content already", params.name, registered.version)
            replace_card(client, registered, card)
        log_exports(client, registered, exports)
    _require_readable(client, registered, made, new)
    set_alias(client, params.name, CHALLENGER, registered.version)
    decision = _decide(client, params, made, registered, measured, tags)
    _log(params.name, registered, decision)
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    record = {"name": params.name, "version": registered.version, DIGEST_TAG: tags[DIGEST_TAG]}
    write_json(RECORD, {**record, **decision.as_json(), "changes": found})


def _changes(client: Client, name: str, made: Made, tags: Mapping[str, str]) -> dict[str, Any] | None:
    """Changes since the champion, or, for the champion itself, since the previous one; None for a first version."""
    versions = [find_by_alias(client, name, alias) for alias in (CHAMPION, PREVIOUS_CHAMPION)]
    before = next((found for found in versions if found and found.tags.get(DIGEST_TAG) != tags[DIGEST_TAG]), None)
    if before is None:
        return None
    settings = load_params()
    params = _flat(settings.model_dump(mode="json"))
    after = of_this_run(tags["base"], params, made.tokens, data_splits(made.datasets), made.evaluation)
    try:
        return changes(recorded(client, before), after, before, settings.seed)
    except VocabgraftError as error:
        logger.warning("warning: the changes since version %d are unknown: %s", before.version, error)
        return None


def _load(made: Made) -> "SentenceTransformer":
    from vocabgraft.models.base import load_model

    return load_model(made.merged, device="cpu", own_modules=True, trust_remote_code=made.trust_remote_code)


def _gate_tag(merged: Path) -> dict[str, str]:
    """The code that loads a model with a gate or own classes, including its base's code."""
    has_code = gate_types(merged) or carried_types(merged)
    return {CODE_TAG: describe_code(code_hashes(merged))} if has_code else {}


def _benefit_tag(measured: Measured, params: RegisterModelParams) -> dict[str, str]:
    benefit = benefit_of(params.gates)
    figure = measured.figure("merged", benefit) if benefit else None
    return {} if figure is None else {BENEFIT_TAG: str(figure)}


def _evidence(client: Client, params: RegisterModelParams, measured: Measured, registered: Registered | None) -> str:
    """The evidence for the benefit. A champion keeps the evidence of its promotion."""
    champion = find_by_alias(client, params.name, CHAMPION)
    if champion and registered and champion.version == registered.version and EVIDENCE_TAG in registered.tags:
        return registered.tags[EVIDENCE_TAG]
    gates = gates_of(measured, True, {}, None, params.gates)
    return evidence_of(gates, _asks_evidence(params, champion))


def _asks_evidence(params: RegisterModelParams, champion: Registered | None) -> bool:
    return params.gates.first_champion == "evidence" or champion is not None


def _write(
    client: Client, params: RegisterModelParams, made: Made, measured: Measured, tags: dict[str, str], card: str
) -> Registered:
    from vocabgraft.models.base import load_model

    with _beside_its_card(made.merged, card) as folder:
        model = load_model(folder, device="cpu", own_modules=True, trust_remote_code=made.trust_remote_code)
        if made.trust_remote_code or carried_types(made.merged):
            keep_code(model, made.merged)
        tags = {**tags, WIDTH_TAG: str(model.get_embedding_dimension())}
        return log_and_register(client, params.name, model, _record(measured, made, tags, card))


def _require_readable(client: Client, registered: Registered, made: Made, new: bool) -> None:
    """Read the version back; delete a new version that differs, before anybody uses it."""
    if registered.tags.get(READ_BACK_TAG):
        return
    try:
        texts = read_back(registered, made.merged, made.evaluation, made.trust_remote_code)
    except VocabgraftError:
        if new:
            remove_version(client, registered)
        raise
    logger.info("read back from the registry: %d texts get equal embeddings", texts)
    tag_version(client, registered.name, registered.version, {READ_BACK_TAG: f"{texts} texts, equal"})


def _decide(
    client: Client,
    params: RegisterModelParams,
    made: Made,
    registered: Registered,
    measured: Measured,
    tags: dict[str, str],
) -> Decision:
    """Judge the version, and make it champion if no gate blocks it."""
    speed = speed_of(SPEED, tags[DIGEST_TAG])
    for _ in range(TRIES):
        champion = find_by_alias(client, params.name, CHAMPION)
        is_champion = champion is not None and champion.version == registered.version
        rival = None if champion is None or is_champion else _rival(client, champion, params, made, tags)
        if champion is not None and rival is not None:
            rival = with_widths(rival, champion, registered)
        gates = gates_of(measured, True, speed, rival, params.gates) + own_module_gates(made.merged, params.gates)
        decision = _decision(gates, _asks_evidence(params, champion), rival, registered if is_champion else None)
        tag_version(client, params.name, registered.version, decision.tags)
        try:
            _settle(client, registered, champion, decision)
        except ChampionMovedError as error:
            logger.info("%s: the gates run again", error)
        else:
            return decision
    raise VocabgraftError(
        f"the alias {CHAMPION} of {params.name} moved {TRIES} times while version {registered.version} was compared "
        "with it; run again when nobody else moves it"
    )


def _settle(client: Client, registered: Registered, champion: Registered | None, decision: Decision) -> None:
    """Make the version champion if that was decided.

    Raises:
        ChampionMovedError: if the champion changed since the comparison.
    """
    if decision.champion:
        make_champion(client, registered, {}, champion)
        return
    require_champion(client, registered, champion)


def _decision(
    gates: list[GateResult], evidence_asked: bool, rival: Rival | None, champion: Registered | None
) -> Decision:
    """The decision. The champion keeps the reason of its promotion, including one that a person gave."""
    said, evidence = decision_of(gates, evidence_asked), evidence_of(gates, evidence_asked)
    promoted = not blocking(gates, evidence_asked)
    reason = ""
    if champion is not None:
        before = champion.tags.get(DECISION_TAG, "")
        said = "champion already" if not before or before.startswith("not promoted") else before
        evidence, reason = champion.tags.get(EVIDENCE_TAG, evidence), champion.tags.get(REASON_TAG, "")
    return Decision(gates, rival, promoted or champion is not None, said, evidence, reason)


def _rival(
    client: Client, champion: Registered, params: RegisterModelParams, made: Made, tags: dict[str, str]
) -> Rival | None:
    benefit = benefit_of(params.gates)
    # If the model extends the champion, the champion is the base of every metric, on the same items.
    if benefit is None or tags["base"] == f"models:/{params.name}/{champion.version}":
        return None
    settings = load_params()
    candidate = Candidate(
        merged=made.merged,
        evaluation=made.evaluation,
        datasets=made.datasets,
        tokens=made.tokens,
        find_base=lambda: find_base(made.base_identity, made.trust_remote_code),
        prompts=settings.base.prompts,
        translations=frozenset(entry.name for entry in settings.validate_data.datasets if entry.is_translation),
        tags=tags,
        batch_size=settings.evaluate_model.batch_size,
        seed=settings.seed,
        trust_remote_code=made.trust_remote_code,
    )
    return compare_with_champion(client, champion, candidate, benefit)


def _log(name: str, registered: Registered, decision: Decision) -> None:
    for gate in decision.gates:
        logger.info("gate %s", told_with_verdict(gate))
    if decision.champion:
        logger.info("%s version %d is the champion; %s", name, registered.version, decision.said)
    else:
        logger.info("%s version %d stays challenger; %s", name, registered.version, decision.said)


@contextmanager
def _beside_its_card(merged: Path, card: str) -> Iterator[Path]:
    """A temporary folder with links to the model's files and the card as README.md, which the library saves again."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for entry in require_artifact(merged).resolve().iterdir():
            if entry.name != "README.md":
                (folder / entry.name).symlink_to(entry)
        (folder / "README.md").write_text(card, encoding="utf-8")
        yield folder


def _facts(
    params: RegisterModelParams,
    made: Made,
    measured: Measured,
    tags: dict[str, str],
    evidence: str,
    found: dict[str, Any] | None,
) -> Facts:
    settings = load_params()
    return Facts(
        name=params.name,
        tags=tags,
        licence=_licence(made.base_identity),
        tokens=read_tokens(made.tokens),
        figures=measured.metrics,
        comparison=measured.comparison,
        retention=measured.retention,
        evidence=evidence,
        method=settings.train_adapter.method if settings.trains else None,
        checks=count_verdicts(check["verdict"] for check in read_json(made.checks)["checks"]),
        changes=found,
    )


def _licence(base_identity: Path) -> str:
    try:
        return licence_of(find_base(base_identity))
    except VocabgraftError as error:
        # A deleted base, such as an older version in the registry, does not prevent registration.
        logger.info("the license of the base is unknown: %s", error)
        return UNKNOWN_LICENCE


def _record(measured: Measured, made: Made, tags: dict[str, str], card: str) -> RunRecord:
    scalars = {
        **_flat(measured.metrics),
        **_flat({"retention": measured.retention}),
        **_flat({"comparison": _by_figure(measured.comparison["items"])}),
        **_flat({"speed": speed_of(SPEED, tags[DIGEST_TAG])}),
    }
    tokenizer = made.tokens.parent / "tokenizer"
    return RunRecord(
        params=_flat(load_params().model_dump(mode="json")),
        metrics={key: float(value) for key, value in scalars.items() if isinstance(value, int | float)},
        curve=read_json(made.adapter / "curve.json"),
        artifacts=[
            _without_a_model(made.adapter),
            made.checks,
            made.evaluation,
            tokenizer,
            made.tokens,
            *_pack_of(made.merged),
        ],
        tags=tags,
        splits=data_splits(made.datasets),
        card=card,
    )


def _without_a_model(adapter: Path) -> Path:
    """The adapter, or only its report if the folder is the whole model (`method: full`), which is logged itself."""
    return adapter if not (adapter / "model.safetensors").is_file() else adapter / "report.json"


def _pack_of(merged: Path) -> list[Path]:
    """The vocabulary pack, if the run has one."""
    return [merged / PACK_FOLDER] if (merged / PACK_FOLDER).is_dir() else []


def _by_figure(items: list[dict[str, Any]]) -> dict[str, Any]:
    """The gains with their intervals, by dataset, subset and metric."""
    kept = ("gain", "low", "high", "p_value")
    return {
        f"{item['dataset']}.{item['subset']}.{item['metric']}".replace("@", "_at_"): {name: item[name] for name in kept}
        for item in items
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or any(UNNAMEABLE.search(str(key)) for key in value):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}".lstrip(".").replace("@", "_at_"))
    return flat


if __name__ == "__main__":
    raise SystemExit(run_stage(register_model))
