"""New tokens before they have an id."""

from hypothesis import given
from hypothesis import strategies as st

from vocabgraft.tokens.new_token import NewToken, read_with_descriptions, relation_token

SPECIAL = NewToken("<|IsA|>", "special", "is a kind of")
WORD = NewToken("nephrolith", "word", "stone in the kidney")


def test_the_base_reads_a_special_token_as_its_description() -> None:
    assert read_with_descriptions("dog <|IsA|> animal <|IsA|> x", [SPECIAL]) == "dog is a kind of animal is a kind of x"


def test_a_word_is_left_for_the_base_to_read_in_pieces() -> None:
    assert read_with_descriptions("a nephrolith", [WORD, SPECIAL]) == "a nephrolith"


def test_a_special_token_in_another_casing_is_another_text() -> None:
    assert read_with_descriptions("dog <|isa|> animal", [SPECIAL]) == "dog <|isa|> animal"


@given(st.text(st.characters(exclude_characters="<|>")))
def test_a_text_without_a_special_token_is_not_changed(text: str) -> None:
    assert read_with_descriptions(text, [SPECIAL, WORD]) == text


@given(left=st.text(), right=st.text())
def test_relations_share_a_token_only_when_they_are_equal(left: str, right: str) -> None:
    assert (relation_token(left) == relation_token(right)) == (left == right)
    assert relation_token("IsA") == SPECIAL.text
