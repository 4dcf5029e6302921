"""`vocabgraft pack inspect`: the contents of a pack."""

from typing import Annotated, Any

from rich.table import Table
from rich.text import Text
from typer import Argument

from flows.commands.output import MODEL, Json, Output
from tasks.support.models import pack_folder
from vocabgraft.packs.pack import Pack
from vocabgraft.packs.pack_files import read_pack

SHOWN = 30


def inspect_pack(
    pack: Annotated[str, Argument(metavar="PACK", help=f"The pack: {MODEL}.")],
    as_json: Json = False,
) -> None:
    """Show the tokens, base, adapter and license of a pack."""
    found = describe(read_pack(pack_folder("PACK", pack)))
    output = Output(as_json)
    output.show(_table(found))
    output.document(found)


def describe(pack: Pack) -> dict[str, Any]:
    """The contents of a pack, without its weights."""
    return {
        "name": pack.name,
        "base": pack.base.model,
        "base_weights_sha256": pack.base.weights_sha256,
        "width": pack.base.width,
        "adapter": pack.adapter.config.get("peft_type") if pack.adapter is not None else None,
        "gated": pack.gate is not None,
        "license": pack.licence,
        "contexts": len(pack.contexts),
        "metrics": dict(pack.figures),
        "tokens": [{"text": token.text, "kind": token.kind, "description": token.description} for token in pack.tokens],
    }


def _table(found: dict[str, Any]) -> Table:
    tokens = found["tokens"]
    table = Table(title=f"pack {found['name']}: {len(tokens):,} tokens", title_justify="left")
    for heading in ("token", "kind", "description"):
        table.add_column(heading, overflow="fold")
    for token in tokens[:SHOWN]:
        table.add_row(*(Text(token[key]) for key in ("text", "kind", "description")))
    if len(tokens) > SHOWN:
        table.add_row(f"and {len(tokens) - SHOWN:,} more", "", "")
    gate = " behind a gate" if found["gated"] else ""
    table.caption = (
        f"base {found['base']}, width {found['width']}, adapter {found['adapter'] or 'none'}{gate}, "
        f"{found['contexts']:,} contexts, license {found['license'] or 'unknown'}"
    )
    return table
