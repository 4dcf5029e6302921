"""A base and a champion with one new word, tiny, over a few documents."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken

from flows.try_page.comparison import Comparison
from flows.try_page.documents import Documents
from flows.try_page.models import Candidate, TryModel
from vocabgraft.models.base import load_model
from vocabgraft.tokens.new_token import NewToken

NEW_WORD, RELATION = "nephrolith", "<|IsA|>"
HOSTILE = '<script>document.title = "x"</script>&amp;'
TEXTS = [f"the {word}" for word in "dog cat house wood stone kidney blood heart water liver sugar doctor".split()]


def documents() -> Documents:
    """A dozen documents and one that is hostile."""
    return Documents([*TEXTS, HOSTILE], "documents of terms")


def extended(base: Path) -> Any:
    """The base with one new word, which means what `kidney` means, and a relation."""
    model = load_model(base, device="cpu")
    model.tokenizer.add_tokens([NEW_WORD, AddedToken(RELATION, normalized=False)])
    model[0].auto_model.resize_token_embeddings(len(model.tokenizer))
    rows = model[0].auto_model.get_input_embeddings().weight
    with torch.no_grad():
        rows[model.tokenizer.convert_tokens_to_ids(NEW_WORD)] = rows[model.tokenizer.convert_tokens_to_ids("kidney")]
    return model


def comparison(base: Path, cache: Path) -> Comparison:
    """Base and champion; nothing is loaded before `prepare`."""
    candidates = [Candidate("Base", "some/base", base), Candidate("Champion", f"clinic {HOSTILE} version 3", base)]
    described = [NewToken(RELATION, "special", "is a kind of")]

    def load(candidate: Candidate, first: TryModel | None) -> TryModel:
        if first is None:
            model = load_model(candidate.folder, device="cpu")
            return TryModel(candidate, model, frozenset(model.tokenizer.get_vocab()), described)
        return TryModel(candidate, extended(base), first.base_vocabulary)

    # Both are of one folder here, so they must not share a cache.
    object.__setattr__(candidates[1], "digest", "another")
    return Comparison(candidates, documents(), load, cache)
