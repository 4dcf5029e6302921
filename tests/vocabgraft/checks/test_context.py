"""The probes are of every kind, parted as the extended tokenizer reads them, and bounded."""

from tests.vocabgraft.conftest import Graft
from vocabgraft.checks.context import LONGEST, PROBES, UNICODE, Probes, choose_probes
from vocabgraft.tokens.tokenizer import holds_new_token, load_tokenizer

TEXTS = ["a nephrolith", "a dog", "a nephrolith", "dog <|IsA|> animal", "nephroliths"]


def chosen(graft: Graft, texts: list[str], window: int = 16) -> Probes:
    return choose_probes(load_tokenizer(graft.tokenizer), texts, graft.tokens, window)


def test_probes_are_distinct_and_parted_by_the_extended_tokenizer(graft: Graft) -> None:
    probes = chosen(graft, TEXTS)
    assert probes.with_new == ("a nephrolith", "dog <|IsA|> animal")
    assert probes.without_new == ("a dog", "nephroliths")
    tokenizer = load_tokenizer(graft.tokenizer)
    for lists, expected in ((probes.new, True), (probes.old, False)):
        texts = [text for text_list in lists for text in text_list]
        assert (holds_new_token(tokenizer, texts, graft.new_ids) == expected).all()


def test_the_edges_are_empty_one_token_longest_and_unicode(graft: Graft) -> None:
    tokenizer = load_tokenizer(graft.tokenizer)
    probes = chosen(graft, TEXTS, window=16)
    assert {"", "a", *UNICODE} <= set(probes.edge_without_new)
    assert "nephrolith" in probes.edge_with_new
    for longest in (probes.longest_with_new, probes.longest_without_new):
        (text,) = longest
        assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) > 16


def test_probes_are_bounded(graft: Graft) -> None:
    many = [f"a dog {number}" for number in range(2 * PROBES)] + [
        f"nephrolith {number}" for number in range(2 * PROBES)
    ]
    probes = chosen(graft, many, window=LONGEST)
    assert (len(probes.with_new), len(probes.without_new)) == (PROBES, PROBES)
    few = probes.few(3)
    assert (few.with_new, few.edge_with_new) == (probes.with_new[:3], probes.edge_with_new)
    # Texts that are nothing to the tokenizer end, too.
    assert chosen(graft, ["\u200b", "nephrolith"]).longest_without_new


def test_mixed_texts_are_by_turns_and_without_the_longest(graft: Graft) -> None:
    probes = chosen(graft, TEXTS)
    mixed = probes.mixed
    assert mixed[:2] == ["a nephrolith", probes.edge_with_new[0]]
    assert mixed.index("a dog") < mixed.index("dog <|IsA|> animal")
    assert not set(mixed) & {*probes.longest_with_new, *probes.longest_without_new}
