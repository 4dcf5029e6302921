"""Packs over the tiny base, with random rows, as if trained."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vocabgraft.packs.pack import Pack, PackToken, identify
from vocabgraft.packs.pack_files import write_pack
from vocabgraft.storage.artifacts import read_json, write_json
from vocabgraft.tokens.new_token import NewToken

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

KIDNEY = (
    NewToken("nephrolith", "word", "stone in the kidney"),
    NewToken("Thrombopenia", "word", ""),
    NewToken("<|IsA|>", "special", "is a kind of"),
)
LIVER = (
    NewToken("hepatoma", "word", "pain in the liver"),
    NewToken("=>", "symbol", "is made of"),
)


def random_rows(model: "SentenceTransformer", tokens: Sequence[NewToken], seed: int) -> Any:
    """Rows of the size of the base's own, so that each moves every text that holds its token."""
    import torch

    weight = model[0].auto_model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(tokens), weight.shape[1], generator=generator).to(weight) * weight.std()


def make_pack(
    model: "SentenceTransformer", name: str, tokens: Sequence[NewToken], seed: int = 0, **changes: Any
) -> Pack:
    """A pack for the model."""
    given = {
        "name": name,
        "base": identify(model, "tiny"),
        "tokens": tuple(PackToken.of(token) for token in tokens),
        "rows": random_rows(model, tokens, seed),
        "contexts": tuple(f"a {token.text} of the dog" for token in tokens),
        "figures": {"fidelity": 0.97},
        "licence": "CC0-1.0",
    }
    return Pack(**(given | changes))


# Folders that `write_bad_packs` makes, and what is said of each.
BAD_PACKS = {
    "foreign": "is for the base other (weights ffffffffffff",
    "truncated": "is damaged or incomplete",
    "newer": "is a pack of format 3, newer than 2, which this version of vocabgraft reads; update vocabgraft",
    "pickled": "is a pickle with a safetensors name",
}


def write_bad_packs(pack: Pack, root: Path) -> None:
    """Write a pack for another base, one cut off, one of a newer format, and one with a pickle for its rows."""
    foreign = replace(pack, base=replace(pack.base, model="other", weights_sha256="f" * 64))
    for name in BAD_PACKS:
        write_pack(foreign if name == "foreign" else pack, root / name)
    rows = root / "truncated" / "rows.safetensors"
    rows.write_bytes(rows.read_bytes()[:-8])
    (root / "pickled" / "rows.safetensors").write_bytes(b"\x80\x04rows")
    manifest = root / "newer" / "manifest.json"
    write_json(manifest, read_json(manifest) | {"format": 3})
