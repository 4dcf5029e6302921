"""`from: descriptions`: pairs made of the vocabulary, judged, split and measured as those of a file are."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from vocabgraft.config.params import load_params
from vocabgraft.data.descriptions import SENTENCES_PER_WORD
from vocabgraft.data.judgement import Judgement, judge, read_raw
from vocabgraft.data.splits import is_held_out
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import tokenizer_file
from vocabgraft.tokens.tokenizer import load_raw_tokenizer

from .test_bad_input import append, setting, write
from .test_without_pairs import CHAIN, read, run

pytestmark = pytest.mark.usefixtures("isolated_forks", "without_data_docs")

RAW, OUT = Path("data/raw"), Path("data/validate_data")
MEANINGS = {
    "nephrolith": "stone in the kidney",
    "thrombopenia": "low blood",
    "hepatoma": "pain in the liver",
    "gastrodyn": "pain with fish",
}


def add(**settings: Any) -> None:
    """Add a dataset of descriptions named `glosses` to the project."""
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    entry = {"name": "glosses", "format": "pairs", "from": "descriptions"} | settings
    params["validate_data"]["datasets"].append(entry)
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def judged(held_out_contexts: float = 0.0) -> Judgement:
    params = load_params()
    base = load_raw_tokenizer(tokenizer_file(Path(params.base.model)))
    longest = params.extend_tokenizer.max_token_characters
    return judge(read_raw(RAW, params.validate_data), RAW, base, params.validate_data, longest, held_out_contexts)


def pairs(held_out_contexts: float = 0.0) -> pd.DataFrame:
    return judged(held_out_contexts).tables["glosses"].accepted


def test_a_word_and_its_first_sentences_stand_against_its_description(tiny_project: Path) -> None:
    add()
    found = pairs()
    contexts = (RAW / "contexts.txt").read_text(encoding="utf-8").splitlines()
    for word, meaning in MEANINGS.items():
        own = found[found["group"] == word]
        assert list(own["anchor"]) == [word, *[text for text in contexts if word in text][:SENTENCES_PER_WORD]]
        assert set(own["positive"]) == {meaning}
        assert [(row.file, row.row) for row in own.itertuples()][1] == (
            "contexts.txt",
            contexts.index(own["anchor"].iloc[1]) + 1,
        )
    # Relation tokens are described too, but that is what the base reads in their place.
    assert set(found["group"]) == set(MEANINGS)


def test_no_pair_is_made_of_a_sentence_that_fidelity_is_measured_on(tiny_project: Path) -> None:
    add()
    sentences = pairs(0.5).query("file == 'contexts.txt'")["anchor"]
    assert not any(is_held_out(text, 0.5) for text in sentences)
    # The rest of the contexts takes the place of what is left out.
    assert any(is_held_out(text, 0.5) for text in pairs().query("file == 'contexts.txt'")["anchor"])
    assert len(sentences) > 0
    setting("resize_base.distillation.held_out", 0.5)()
    assert run("validate_data") == 0
    kept = [row["anchor"] for row in pq.read_table(OUT / "datasets/glosses/train.parquet").to_pylist()]
    assert sorted(kept) == sorted([*MEANINGS, *sentences])


def test_no_pair_is_made_of_a_sentence_with_two_words_or_of_a_refused_one(tiny_project: Path) -> None:
    add()
    setting("validate_data.min_uses", 1)()
    append("vocabulary.csv", "cardiolith,word,a stone of the heart", "uroscope ,word,it looks into the kidney")()
    append("contexts.txt", "a cardiolith and a hepatoma", "a cardiolith of the dog", "a Cardiolith", "CARDIOLITH")()
    found = pairs()
    assert list(found[found["group"] == "cardiolith"]["anchor"]) == [
        "cardiolith",
        "a cardiolith of the dog",
        "a Cardiolith",
    ]
    assert "a cardiolith and a hepatoma" not in set(found["anchor"])
    assert "uroscope " not in set(found["group"])


def held_out_for_test(content: str) -> None:
    """Give a test file of pairs, and let nothing else of the pairs be held out."""
    write("test.csv", content)()
    setting("validate_data.datasets.1.files.test", "test.csv")()
    setting("validate_data.datasets.1.held_out", {"validation": 0.0, "test": 0.0})()


def test_a_description_that_another_dataset_holds_out_is_not_trained_on(tiny_project: Path) -> None:
    add()
    # Of hepatoma the word stands in the test split, not its description; of gastrodyn one sentence.
    held_out_for_test(
        "anchor,positive,group\nStone in the  kidney,some kidney,q\n"
        "hepatoma,of liver,r\nthe gastrodyn of the dog is high,a fish,s\n"
    )
    found = pairs()
    assert set(found["word"]) == set(MEANINGS) - {"nephrolith"}
    assert "hepatoma" in set(found["anchor"])
    assert "the gastrodyn of the dog is high" in (RAW / "contexts.txt").read_text(encoding="utf-8").splitlines()
    assert "the gastrodyn of the dog is high" not in set(found["anchor"])
    assert run("validate_data") == 0
    (warning,) = [entry for entry in read("validate_data")["warnings"] if "glosses" in entry]
    assert "1 of 4 words" in warning
    assert "another dataset holds out (nephrolith)" in warning


def test_a_triple_that_tells_a_description_counts_and_a_shared_tail_does_not(tiny_project: Path) -> None:
    add()
    setting("validate_data.datasets.0.held_out", {"validation": 0.0, "test": 0.0})()
    write("links.csv", "head,relation,tail\nnephrolith,IsA,stone in the kidney\nsome fish,IsA,pain in the liver\n")()
    setting("validate_data.datasets.0.files.test", "links.csv")()
    assert set(pairs()["word"]) == set(MEANINGS) - {"nephrolith"}


def test_what_another_dataset_trains_on_is_not_held_out(tiny_project: Path) -> None:
    add(held_out={"test": 0.99})
    setting("register_model.gates.benefit", "retention")()
    setting("validate_data.datasets.1.held_out", {"validation": 0.0, "test": 0.0})()
    assert set(pairs()["split"]) == {"test"}
    sentence = "the gastrodyn of the dog is high"
    append("terms.csv", f"kidney rock,Stone in the  Kidney,x,\n{sentence},a fish,y".replace(",x,", ",x"))()
    found = pairs()
    assert {word: set(rows["split"]) for word, rows in found.groupby("word")} == {
        word: {"train" if word == "nephrolith" else "test"} for word in MEANINGS
    }
    assert sentence not in set(found["anchor"])
    assert len(found) == 4 * (1 + SENTENCES_PER_WORD) - 1


def test_the_pairs_of_a_word_are_held_out_together_and_written_as_those_of_a_file(tiny_project: Path) -> None:
    add(held_out={"validation": 0.2, "test": 0.4})
    # Words with one description, and a word that describes another, are one group, so that no text is in two splits.
    append("vocabulary.csv", "renolith,word,Stone in the kidney", "hepatic,word,hepatoma")()
    append("contexts.txt", "a renolith of the dog", "a renolith of the cat", "a hepatic dog", "a hepatic cat")()
    assert run("validate_data") == 0
    splits = {name: pq.read_table(OUT / f"datasets/glosses/{name}.parquet") for name in ("train", "validation", "test")}
    assert {tuple(table.column_names) for table in splits.values()} == {("anchor", "positive", "group")}
    texts = {name: {t for c in ("anchor", "positive") for t in table[c].to_pylist()} for name, table in splits.items()}
    homes = {word: [name for name, found in texts.items() if word in found] for word in [*MEANINGS, "renolith"]}
    assert all(len(found) == 1 for found in homes.values())
    assert homes["renolith"] == homes["nephrolith"]
    assert [name for name, found in texts.items() if "hepatic" in found] == homes["hepatoma"]
    assert {name for found in homes.values() for name in found} >= {"train", "test"}
    assert read("validate_data")["datasets"]["glosses"] == {name: len(table) for name, table in splits.items()}


def test_descriptions_are_made_once(tiny_project: Path) -> None:
    add()
    add(name="more", held_out={"test": 0.5})
    with pytest.raises(VocabgraftError, match=r"glosses, more .* keep one"):
        load_params()


def test_words_without_a_description_are_listed_and_all_are_refused(
    tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add()
    content = (RAW / "vocabulary.csv").read_text(encoding="utf-8")
    # A description that is the word itself says nothing.
    write("vocabulary.csv", content.replace("stone in the kidney", "").replace("low blood", "Thrombopenia"))()
    assert run("validate_data") == 0
    (warning,) = [entry for entry in read("validate_data")["warnings"] if "glosses" in entry]
    assert "2 of 4 words" in warning
    assert "nephrolith, thrombopenia" in warning
    for meaning in MEANINGS.values():
        content = content.replace(meaning, "")
    write("vocabulary.csv", content)()
    assert run("validate_data") == 1
    told = capsys.readouterr().err
    assert "dataset glosses (from: descriptions) has no pair" in told
    assert "vocabulary.csv" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ("stone " * 500 + "heart", "too long"),
        ("a stone \x07 of the heart", "control or replacement"),
        ("𓀀𓀁", "no subword token"),
    ],
)
def test_a_description_is_judged_where_it_is_trained_on(description: str, reason: str, tiny_project: Path) -> None:
    append("vocabulary.csv", f"cardiolith,word,{description}")()
    append("contexts.txt", "a cardiolith of the dog", "a cardiolith of the cat")()
    assert judged().refusals == ()
    add()
    (refusal,) = judged().refusals
    assert (refusal.file, refusal.row, refusal.column) == ("vocabulary.csv", 8, "description")
    assert reason in refusal.reason


def test_made_rows_do_not_count_as_rows_of_the_files(tiny_project: Path) -> None:
    add()
    setting("validate_data.on_invalid", "quarantine")()
    append("terms.csv", *(f"a dog {number}," for number in range(10)))()
    rows = sum(len(table.accepted) for name, table in judged().tables.items() if name != "glosses")
    # With the made rows in the total this share would let the refused ones pass.
    setting("validate_data.max_rejected_fraction", 10 / (rows + 10) - 1e-6)()
    assert run("validate_data") == 1


def test_a_corpus_with_descriptions_is_trained_and_its_gain_is_a_gate(tiny_project: Path) -> None:
    for name in ("terms.csv", "relations.csv", "retention.csv"):
        (RAW / name).unlink()
    setting("validate_data.datasets", [])()
    setting("validate_data.retention", None)()
    setting("validate_data.min_uses", 1)()
    add(held_out={"test": 0.4})
    setting("check_consistency.max_norm_ratio", 3.0)()
    setting("register_model.gates.benefit", "glosses.new_word.mrr")()
    assert run(*CHAIN, "train_control", "evaluate_model") == 0
    report = read("train_adapter")
    assert report["examples"] == read("validate_data")["datasets"]["glosses"]["train"] > 0
    items = read("evaluate_model", "comparison.json")["items"]
    assert {(entry["dataset"], entry["subset"]) for entry in items} >= {("glosses", "new_word")}


def test_words_of_an_earlier_run_keep_their_pairs(tiny_project: Path) -> None:
    params = load_params()
    file = tokenizer_file(Path(params.base.model))
    grown = json.loads(file.read_text(encoding="utf-8"))
    number = 1 + max(grown["model"]["vocab"].values())
    grown["added_tokens"].append(
        {"id": number, "content": "hepatoma", "single_word": True, "lstrip": False, "rstrip": False}
        | {"normalized": True, "special": False}
    )
    from tokenizers import Tokenizer

    add()
    data = load_params().validate_data
    base = Tokenizer.from_str(json.dumps(grown))
    judgement = judge(read_raw(RAW, data), RAW, base, data, params.extend_tokenizer.max_token_characters)
    assert judgement.tables["vocabulary"].accepted.query("kept == 1")["token"].tolist() == ["hepatoma"]
    own = judgement.tables["glosses"].accepted.query("group == 'hepatoma'")
    assert len(own) == 1 + SENTENCES_PER_WORD
