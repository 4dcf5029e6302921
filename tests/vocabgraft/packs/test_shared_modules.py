"""Rows appended to a matrix that stays, models that share all but a few modules, tokenizers that share their model."""

import copy

import pytest
import torch
from torch import nn

from tests.tokenizer_families import CORPUS, FAMILIES, as_fast
from vocabgraft.errors import VocabgraftError
from vocabgraft.packs.pack import PackToken
from vocabgraft.packs.shared_modules import AppendedRows, exchange, sharing_tokenizer
from vocabgraft.tokens.new_token import NewToken

TOKENS = [
    PackToken.of(token)
    for token in (
        NewToken("nephrolith", "word", ""),
        NewToken("Thrombopenia", "word", ""),
        NewToken("beta-blocker", "word", ""),
        NewToken("\u80be\u81d3", "word", ""),
        NewToken("=>", "symbol", ""),
        NewToken("<|IsA|>", "special", ""),
    )
]
TEXTS = [
    *CORPUS,
    "a Nephrolith, nephroliths; THROMBOPENIA",
    "wood=>house <|IsA|> <|isa|> beta-blocker beta-blockers",
    "\u80be\u81d3\u75c5 caf\u00e9 \uff21",
    "",
]


class Nested(nn.Module):
    """An embedding in a module, used twice, beside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"words": nn.Embedding(6, 4), "layer": nn.Linear(4, 4)})
        self.again = self.inner["words"]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Through the layer, and past it."""
        result: torch.Tensor = self.inner["layer"](self.inner["words"](ids)) + self.again(ids)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first", [6, 4])
def test_ids_from_the_first_on_are_the_rows_and_all_others_the_matrix(first: int, dtype: torch.dtype) -> None:
    embedding, rows = nn.Embedding(6, 4, dtype=dtype), torch.randn(3, 4)
    appended = AppendedRows(embedding, rows, first)
    ids = torch.tensor([[0, first, first - 1], [first + 2, first + 1, 1]])
    whole = torch.cat([embedding.weight[:first], rows.to(dtype)])
    assert torch.equal(appended(ids), whole[ids])
    assert appended.weight is embedding.weight
    assert torch.equal(AppendedRows(embedding, rows[:0], first)(ids % first), embedding(ids % first))


def test_only_what_holds_the_exchanged_module_is_copied() -> None:
    model = Nested()
    ids = torch.arange(6)
    before = model(ids)
    appended = AppendedRows(model.again, torch.ones(1, 4), 6)
    changed = exchange(model, {model.again: appended})
    assert changed.inner["layer"] is model.inner["layer"]
    assert changed.inner["words"] is appended and changed.again is appended
    assert model.inner["words"] is model.again and model.again is not appended
    assert torch.equal(changed(ids), before) and torch.equal(model(ids), before)
    assert changed(torch.tensor([6])).shape == (1, 4)


def test_a_compiled_call_of_the_original_does_not_go_along() -> None:
    model = Nested()
    model._compiled_call_impl = lambda ids: torch.zeros(1)
    changed = exchange(model, {model.again: AppendedRows(model.again, torch.ones(1, 4), 6)})
    assert changed(torch.tensor([6])).shape == (1, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sharing_tokenizer_reads_as_a_copy_with_the_tokens_added(family: str) -> None:
    base = as_fast(FAMILIES[family]())
    before = base.backend_tokenizer.to_str()
    copied = copy.deepcopy(base)
    copied.add_tokens([token.added for token in TOKENS])
    shared = sharing_tokenizer(base, TOKENS)
    for special in (True, False):
        given = shared(TEXTS, add_special_tokens=special)["input_ids"]
        assert given == copied(TEXTS, add_special_tokens=special)["input_ids"]
    assert [shared.convert_tokens_to_ids(token.text) for token in TOKENS] == list(
        range(len(base), len(base) + len(TOKENS))
    )
    assert shared.decode(given[-3]) == copied.decode(given[-3])
    assert base.backend_tokenizer.to_str() == before and len(base) + len(TOKENS) == len(shared)
    # What a model is saved with must be complete.
    assert shared.backend_tokenizer.to_str() == copied.backend_tokenizer.to_str()


@pytest.mark.parametrize("family", ["wordpiece uncased", "unigram"])
def test_tokens_that_a_base_has_from_earlier_keep_their_ids(family: str) -> None:
    base = as_fast(FAMILIES[family]())
    base.add_tokens([TOKENS[0].added])
    base.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    base.add_tokens([TOKENS[4].added])
    shared = sharing_tokenizer(base, [TOKENS[1]])
    texts = ["a nephrolith <|end|> => thrombopenia"]
    ids = shared(texts)["input_ids"][0]
    assert base(texts)["input_ids"][0][: len(ids) // 2] == ids[: len(ids) // 2]
    assert shared.get_added_vocab() == base.get_added_vocab() | {"Thrombopenia": len(base)}
    with pytest.raises(VocabgraftError, match="'nephrolith' gets the id"):
        sharing_tokenizer(base, [TOKENS[0]])
