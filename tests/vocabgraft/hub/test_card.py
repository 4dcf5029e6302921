"""The card on a hub: complete metadata, licenses, and nothing of the data read as markup."""

from pathlib import Path

import pytest
import yaml

from vocabgraft.errors import VocabgraftError
from vocabgraft.hub.card import CardFacts, read_metadata, write_hub_card

FACTS = CardFacts(
    repo="clinic/minilm",
    license="Apache-2.0",
    base="sentence-transformers/all-MiniLM-L6-v2",
    base_license="apache-2.0",
    data_license="CC-BY-4.0",
    words=["nephrolithiasis", "<|IsA|>"],
    metrics={"fidelity": 0.98},
)


def body_of(card: str) -> str:
    return card.split("---\n", 2)[2]


def test_a_model_without_a_card_gets_one_with_all_that_is_known() -> None:
    card = write_hub_card("", FACTS)
    metadata = yaml.safe_load(card.split("---\n", 2)[1])
    assert metadata == {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction", "sentence-similarity", "vocabgraft"],
        "license": "apache-2.0",
        "base_model": "sentence-transformers/all-MiniLM-L6-v2",
    }
    assert read_metadata(card) == metadata
    body = body_of(card)
    assert "| fidelity | 0.98 |" in body and 'SentenceTransformer("clinic/minilm")' in body
    assert "Model: Apache-2.0. Base: apache-2.0. Words and training texts: CC-BY-4.0." in body
    assert "`nephrolithiasis`, `IsA`" in body


def test_an_existing_card_keeps_its_text_and_its_own_metadata() -> None:
    existing = "---\nlicense: unknown\nlanguage: en\ntags: medical\n---\n# Mine\n\nThe figures.\n"
    card = write_hub_card(existing, FACTS)
    metadata = read_metadata(card)
    assert metadata["language"] == "en" and metadata["license"] == "apache-2.0"
    assert metadata["tags"][:2] == ["medical", "sentence-transformers"]
    assert body_of(card).startswith("# Mine\n\nThe figures.")
    assert "fidelity" not in card and card.count("# Mine") == 1
    # Published again, nothing is repeated in the metadata.
    assert read_metadata(write_hub_card(card, FACTS)) == metadata


@pytest.mark.parametrize("base", ["package:gt_minilm/model", "models:/clinic/3", "data/base", "/srv/base", ""])
def test_a_base_that_the_hub_does_not_have_is_no_link(base: str, in_folder: Path) -> None:
    Path("data/base").mkdir(parents=True)
    card = write_hub_card("", CardFacts("clinic/minilm", "mit", base=base))
    assert "base_model" not in read_metadata(card)


def test_code_that_loading_runs_is_in_the_call_that_loads() -> None:
    card = write_hub_card("", CardFacts("clinic/minilm", "mit", code=True))
    assert 'SentenceTransformer("clinic/minilm", trust_remote_code=True)' in card
    assert "trust_remote_code" not in write_hub_card("", CardFacts("clinic/minilm", "mit"))


def test_an_export_is_reported_of() -> None:
    card = write_hub_card("", CardFacts("clinic/minilm", "mit", onnx=True))
    assert "onnx" in read_metadata(card)["tags"] and "onnx/model.onnx" in card


@pytest.mark.parametrize("broken", ["---\na: [1\n---\nx", "---\n- a\n---\nx"])
def test_damaged_metadata_is_reported(broken: str) -> None:
    with pytest.raises(VocabgraftError, match=r"metadata of the model's README\.md"):
        write_hub_card(broken, FACTS)


def test_text_of_the_data_is_no_markup() -> None:
    hostile = CardFacts("clinic/minilm", "mit", words=["<script>x</script>", "a`b", "c|d\n# e"], metrics={"<b>": 1})
    body = body_of(write_hub_card("", hostile))
    assert "<script>" not in body and "`a'b`" in body and "\n# e" not in body and "<b>" not in body
