"""`vocabgraft registry promote`: make a version the champion, when its gates hold or a person says why not."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from flows.commands.output import ModelName, Output, Quiet
from flows.engine.prefect_run import recorded
from vocabgraft.config.params import load_params
from vocabgraft.errors import VocabgraftError

if TYPE_CHECKING:
    from tasks.registry.lookup import Client, Registered

RIVAL = "gain over the champion"


def promote_version(
    version: Annotated[int, Argument(metavar="VERSION", help="The version to promote, such as 7.")],
    force: Annotated[bool, Option("--force", help="Promote it though a gate does not hold; needs --reason.")] = False,
    reason: Annotated[str | None, Option(metavar="TEXT", help="Why; kept as a tag of the version.")] = None,
    name: ModelName = None,
    quiet: Quiet = False,
) -> None:
    """Make a version the champion, if its gates hold.

    The champion before it gets the alias previous_champion.
    """
    if force and not (reason or "").strip():
        raise VocabgraftError('--force needs --reason "why", which is kept with the version')
    lines = recorded("promote", lambda: promote(name, version, force, reason))
    Output(quiet=quiet).line("\n".join(lines))


def promote(name: str | None, number: int, force: bool = False, reason: str | None = None) -> list[str]:
    """Make a version champion; the present one becomes the previous one.

    Returns:
        What was done, a line each.

    Raises:
        VocabgraftError: when a gate does not hold and nothing forces it, or there is no such version.
    """
    from tasks.registry.lookup import CHAMPION, connect, find_by_alias
    from tasks.registry.versions import find_version, make_champion

    params = load_params()
    name = name or params.register_model.name
    client = connect()
    version = find_version(client, name, number)
    champion = find_by_alias(client, name, CHAMPION)
    if champion is not None and champion.version == number:
        return [f"{name} version {number} is the champion already"]
    gates = judged(client, version, champion)
    unmet = [gate for gate in gates if not gate["holds"]]
    if unmet and not force:
        told = "; ".join(f"{gate['name']} is {gate['figure']} (needed: {gate['limit']})" for gate in unmet)
        raise VocabgraftError(
            f'{name} version {number} does not meet its gates: {told}; --force --reason "why" promotes it all the same'
        )
    # An unforced promotion takes away what an earlier forced one said.
    tags = {"decision": "promoted by force" if unmet else "promoted by hand", "decision_reason": reason or ""}
    before = make_champion(client, version, tags)
    lines = [f"gate {gate['name']}: {'holds' if gate['holds'] else 'NOT MET'} ({gate['limit']})" for gate in gates]
    was = f"; version {before.version} is the previous champion" if before else ""
    return [*lines, f"{name} version {number} is the champion{was}"]


def judged(client: "Client", version: "Registered", champion: "Registered | None") -> list[dict[str, Any]]:
    """The gates of a version as they were registered, that of the champion asked again where it is another by now."""
    from tasks.registry.versions import gates_on

    own = [gate for gate in gates_on(version) if not gate["name"].startswith(RIVAL)]
    if not own:
        own = [{"name": "gates", "figure": None, "limit": "the version has none on record", "holds": False}]
    if champion is None or version.tags.get("base") == f"models:/{champion.name}/{champion.version}":
        return own
    kept = [gate for gate in gates_on(version) if gate["name"] == f"{RIVAL}, version {champion.version}"]
    return [*own, *(kept or [_against(client, version, champion)])]


def _against(client: "Client", version: "Registered", champion: "Registered") -> dict[str, Any]:
    from tasks.registry.champion import ITEMS, ITEMS_TAG, Rival, compare_recorded
    from tasks.registry.gates import benefit_of, rival_gate
    from tasks.registry.register import artifact_of

    params = load_params()
    benefit = benefit_of(params.register_model.gates.benefit)
    rival = None
    with artifact_of(client, version, ITEMS) as items:
        if items is not None:
            asked = version.tags.get(ITEMS_TAG, "")
            rival = compare_recorded(client, champion, items, asked, benefit, params.seed)
    why = "measured on other items, so not comparable; a run of the pipeline asks both today's"
    return asdict(rival_gate(rival or Rival(champion.version, None, why)))
