"""Packs over the tiny base, with random rows, as if trained."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vocabgraft.packs import Pack, PackToken, identify
from vocabgraft.vocabulary import NewToken

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
