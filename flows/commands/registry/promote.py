"""`vocabgraft registry promote`: make a version the champion if its gates hold, or by force with a reason."""

from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from flows.commands.output import ModelName, Output, Quiet
from flows.engine.prefect_run import recorded
from tasks.registry.gate_results import GateResult, blocking, evidence_of, told, told_with_verdict
from vocabgraft.config.params import Params, load_params
from vocabgraft.errors import VocabgraftError

if TYPE_CHECKING:
    from tasks.registry.lookup import Client, Registered


def promote_version(
    version: Annotated[int, Argument(metavar="VERSION", help="The version to promote, such as 7.")],
    force: Annotated[bool, Option("--force", help="Promote it although a gate does not hold; needs --reason.")] = False,
    reason: Annotated[str | None, Option(metavar="TEXT", help="Why; kept as a tag of the version.")] = None,
    name: ModelName = None,
    quiet: Quiet = False,
) -> None:
    """Make a version the champion, if its gates hold.

    The champion before it gets the alias previous_champion.
    """
    if force and not (reason or "").strip():
        raise VocabgraftError('--force needs --reason "why"; the version keeps it as a tag')
    lines = recorded("promote", lambda: promote(name, version, force, reason))
    Output(quiet=quiet).line("\n".join(lines))


def promote(name: str | None, number: int, force: bool = False, reason: str | None = None) -> list[str]:
    """Make a version the champion; the current champion becomes the previous one.

    Returns:
        Lines that say what was done.

    Raises:
        VocabgraftError: if a gate does not hold and `force` is not set, or there is no such version.
    """
    from tasks.registry.lookup import CHAMPION, connect, find_by_alias
    from tasks.registry.versions import DECISION_TAG, EVIDENCE_TAG, REASON_TAG, find_version, make_champion

    params = load_params()
    name = name or params.register_model.name
    client = connect()
    version = find_version(client, name, number)
    champion = find_by_alias(client, name, CHAMPION)
    if champion is not None and champion.version == number:
        return [f"{name} version {number} is the champion already"]
    gates = judged(client, version, champion, params)
    evidence_asked = champion is not None or params.register_model.gates.first_champion == "evidence"
    unmet = blocking(gates, evidence_asked)
    if unmet and not force:
        raise VocabgraftError(
            f"{name} version {number} is not promoted: {'; '.join(map(told, unmet))}. "
            f'To promote it anyway: vocabgraft registry promote {number} --force --reason "why"'
        )
    # An unforced promotion clears the reason of an earlier forced one.
    tags = {
        DECISION_TAG: "promoted by force" if unmet else "promoted by hand",
        EVIDENCE_TAG: evidence_of(gates, evidence_asked),
        REASON_TAG: reason or "",
    }
    before = make_champion(client, version, tags, champion)
    was = f"; version {before.version} is the previous champion" if before else ""
    lines = [f"gate {told_with_verdict(gate)}" for gate in gates]
    return [*lines, f"{name} version {number} is the champion{was}"]


def judged(client: "Client", version: "Registered", champion: "Registered | None", params: Params) -> list[GateResult]:
    """The recorded gates of a version; the champion gate is evaluated again if the champion has changed."""
    from tasks.registry.versions import gates_on

    on_record = gates_on(version)
    own = [gate for gate in on_record if gate.kind != "champion"]
    if not own:
        own = [GateResult("benefit", "gates", "not shown", "", claim="hold its gates", note="none is recorded")]
    if champion is None or version.tags.get("base") == f"models:/{champion.name}/{champion.version}":
        return own
    # The name of a champion gate has the champion's version.
    kept = [gate for gate in on_record if gate.kind == "champion" and gate.name.endswith(f" {champion.version}")]
    return [*own, *(kept or _against(client, version, champion, params))]


def _against(client: "Client", version: "Registered", champion: "Registered", params: Params) -> list[GateResult]:
    from tasks.registry.champion import ITEMS, Rival, compare_recorded
    from tasks.registry.gates import benefit_of, champion_gate
    from tasks.registry.register import artifact_of

    benefit = benefit_of(params.register_model.gates)
    if benefit is None:
        return []
    rival = None
    with artifact_of(client, version, ITEMS) as items:
        if items is not None:
            rival = compare_recorded(client, champion, items, version.tags, benefit, params.seed)
    why = "measured on other items, so not comparable; a run of the pipeline scores both on today's items"
    return [champion_gate(rival or Rival(champion.version, benefit, None, why))]
