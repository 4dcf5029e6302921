"""`vocabgraft publish`: a model on a model hub, with its card, its licenses and its vocabulary pack."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from flows.commands.output import MODEL, Json, Output, Quiet
from tasks.registry.model_card import UNKNOWN_LICENCE, licence_of
from tasks.support.models import model_folder, pack_folder
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import REGISTRY_PREFIX, look_up_base
from vocabgraft.models.saving import PACK_FOLDER

if TYPE_CHECKING:
    from vocabgraft.hub.publish import Publication
    from vocabgraft.packs.pack import Pack


def publish_model(
    model: Annotated[str, Argument(metavar="MODEL", help=f"The model: {MODEL}.")],
    repo: Annotated[str, Option(metavar="NAME", help="Repository on the hub: OWNER/NAME, or NAME of your own.")],
    license_: Annotated[
        str | None,
        Option("--license", metavar="ID", help="License of the model, such as apache-2.0. Default: that of its base."),
    ] = None,
    onnx: Annotated[
        Path | None, Option(metavar="DIR", help="An export by `vocabgraft export`, which goes to onnx/.")
    ] = None,
    public: Annotated[bool, Option("--public", help="Make a new repository public. Default: private.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Show what would be sent, and send nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Share a model on a model hub: files, card and vocabulary pack in one commit.

    The hub is huggingface.co, or the server of the variable HF_ENDPOINT. The token is that of HF_TOKEN or of
    `hf auth login`. A repository that exists keeps its visibility and its other files.
    """
    from vocabgraft.hub.publish import require_repo_name, send

    require_repo_name(repo)
    output = Output(as_json, quiet)
    with output.working():
        publication = _gather(model, repo, license_, onnx, public)
        url = None if dry_run else send(publication, f"Publish {model}")
    output.show(_table(publication))
    if dry_run:
        output.line(publication.card)
    output.line("nothing was sent: --dry-run" if url is None else f"published: {url}")
    output.document({**publication.as_json(), "commit": url})


def _gather(model: str, repo: str, license_: str | None, onnx: Path | None, public: bool) -> "Publication":
    from vocabgraft.hub.card import CardFacts, read_metadata, write_hub_card
    from vocabgraft.hub.publish import CARD, Publication, gather_files
    from vocabgraft.packs.pack_files import read_pack

    folder = model_folder("MODEL", model)
    place = _pack_of(model, folder)
    pack = read_pack(place) if place else None
    files = gather_files(folder, None if place is None or place.is_relative_to(folder) else place, onnx)
    card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    base_license = _base_license(read_metadata(card), pack)
    chosen = license_ or base_license
    if chosen == UNKNOWN_LICENCE:
        raise VocabgraftError(
            f"the license of {model} is not known: neither its card nor its base states one; give --license, such as "
            "apache-2.0"
        )
    facts = CardFacts(
        repo=repo,
        license=chosen,
        base=pack.base.model if pack else "",
        base_license=base_license,
        data_license=pack.licence or UNKNOWN_LICENCE if pack else UNKNOWN_LICENCE,
        words=[token.text for token in pack.tokens] if pack else [],
        metrics=dict(_flat(pack.figures)) if pack else {},
        onnx=onnx is not None,
        code=any(name.endswith(".py") for name in files),
    )
    return Publication(repo, public, write_hub_card(card, facts), files)


def _pack_of(model: str, folder: Path) -> Path | None:
    """The folder of the model's pack: beside the model, or in the registry; None where there is none."""
    if (folder / PACK_FOLDER).is_dir():
        return folder / PACK_FOLDER
    if not model.startswith(REGISTRY_PREFIX):
        return None
    try:
        return pack_folder("MODEL", model)
    except VocabgraftError:
        # Registered without one, such as with method full.
        return None


def _base_license(metadata: Mapping[str, Any], pack: "Pack | None") -> str:
    """The license in the model's card, which registration copied from the base; else the one in the base's card."""
    if (stated := str(metadata.get("license") or UNKNOWN_LICENCE)) != UNKNOWN_LICENCE:
        return stated
    if pack is None or pack.base.model.startswith(REGISTRY_PREFIX):
        return UNKNOWN_LICENCE
    try:
        base = look_up_base(pack.base.model)
    except VocabgraftError:
        # The base is gone by now.
        return UNKNOWN_LICENCE
    return UNKNOWN_LICENCE if base is None else licence_of(base)


def _flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value


def _table(publication: "Publication") -> Table:
    sizes = publication.sizes
    visible = "public" if publication.public else "private"
    title = f"{publication.repo} ({visible} if it is new): {len(sizes)} files, {sum(sizes.values()) / 1e6:,.1f} MB"
    table = Table(title=title, title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("bytes", justify="right")
    for path, size in sizes.items():
        table.add_row(Text(path), f"{size:,}")
    return table
