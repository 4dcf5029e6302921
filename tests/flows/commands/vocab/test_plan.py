"""The planner as a command: what it writes, and what it refuses without a trace."""

import csv
import json
from pathlib import Path

import pytest

from tests.conftest import write_lines
from tests.flows.invoke import cli

main = cli("vocab", "plan")

PROSE = [f"The {word} of a dog is high." for word in ("hepatoma", "stenosis", "hepatoma") for _ in range(8)]


@pytest.fixture
def arguments(in_folder: Path, tiny_base: Path) -> list[str]:
    write_lines(in_folder / "corpus.txt", [*PROSE, "see docs/readme.md", "in 2024"])
    return ["corpus.txt", "--base", str(tiny_base), "--processes", "1", "--out", "plan"]


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_it_writes_a_vocabulary_ready_for_use_a_table_counts_and_a_plot(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--top", "1"]) == 0
    assert rows("plan/vocabulary.csv") == [{"token": "hepatoma", "kind": "word", "description": ""}]
    table = rows("plan/plan.csv")
    assert [(row["word"], row["tokens_saved"], row["in_vocabulary"]) for row in table] == [
        ("hepatoma", "112", "yes"),
        ("stenosis", "56", "no"),
    ]
    assert table[0]["segmentation"] == "h ##e ##p ##a ##t ##o ##m ##a"
    figures = json.loads(Path("plan/plan.json").read_text(encoding="utf-8"))
    assert figures["corpus"]["counts_too_low_by_at_most"] == 0
    assert figures["corpus"]["skipped"] == {"name": 1, "identifier": 0, "number": 1}
    assert figures["top"]["tokens_saved"] == 112
    assert Path("plan/plan.png").read_bytes().startswith(b"\x89PNG")
    assert "hepatoma" in capsys.readouterr().out


def test_without_params_the_shipped_base_counts(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not Path("params.yaml").exists()
    write_lines(in_folder / "corpus.txt", PROSE)
    assert main(["corpus.txt", "--processes", "1"]) == 0
    pieces = {row["word"]: row["pieces"] for row in rows("reports/plan/plan.csv")}
    assert pieces == {"hepatoma": "4", "stenosis": "2"}, "the tiny base has a token for each letter"
    assert (
        "vocabgraft new FOLDER --vocabulary reports/plan/vocabulary.csv --corpus corpus.txt" in capsys.readouterr().out
    )


def test_the_vocabulary_is_read_as_the_pipeline_reads_one(arguments: list[str]) -> None:
    from vocabgraft.data.validation import new_tokens, read_vocabulary
    from vocabgraft.tokens.new_token import NewToken

    main(arguments)
    read = new_tokens(read_vocabulary(Path("plan"), "vocabulary.csv").rows)
    assert read == [NewToken("hepatoma", "word", ""), NewToken("stenosis", "word", "")]


def test_words_of_an_earlier_vocabulary_are_left_out(arguments: list[str]) -> None:
    write_lines(Path("vocabulary.csv"), ["token,kind,description", "Hepatoma,word,"])
    assert main([*arguments, "--vocabulary", "vocabulary.csv"]) == 0
    assert [row["token"] for row in rows("plan/vocabulary.csv")] == ["stenosis"]


def test_against_a_background_only_special_words_are_taken(arguments: list[str]) -> None:
    write_lines(Path("general.jsonl"), [json.dumps({"body": line}) for line in PROSE if "stenosis" in line] * 3)
    command = [*arguments, "--background", "general.jsonl", "--background-column", "body"]
    assert main(command) == 0
    assert [row["token"] for row in rows("plan/vocabulary.csv")] == ["hepatoma"]


def test_a_background_of_numbers_is_reported(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(Path("numbers.txt"), ["1 2 3"])
    assert main([*arguments, "--background", "numbers.txt"]) == 2
    assert "the background has no words" in capsys.readouterr().err
    assert not Path("plan").exists()


def test_the_knee_is_marked_in_the_plot(arguments: list[str]) -> None:
    from flows.commands.vocab.plan import draw
    from vocabgraft.planning.ranking import Plan, PlannedWord

    plan = Plan(tuple(PlannedWord(f"w{i}", count, 2) for i, count in enumerate([90, 80, 3, 2, 1])), {}, 2)
    marks = [line.get_label() for line in draw(plan, 4).axes[0].lines]
    assert "diminishing returns: 2 words" in marks
    assert "in vocabulary.csv: 4 words" in marks


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (None, [], "corpus.txt is missing"),
        (b"", [], "corpus.txt is empty"),
        (b"\x7fELF\x00\x01\xff", [], "line 1 contains a NUL"),
        (b"\n \n", [], "corpus: the corpus has only blank texts"),
        (b"word\n", [], "no word of 1 is worth adding"),
        (b"word\n", ["--top", "0"], "Invalid value for '--top'"),
        (b"word\n", ["--min-count", "0"], "min_count is 0; allowed: 1 or more"),
        (b"word\n", ["--background", "general.pdf"], "general.pdf is missing"),
        (b"word\n", ["--base", "./nowhere"], "--base is './nowhere'"),
        (b"word\n", ["--vocabulary", "none.csv"], "none.csv is missing"),
    ],
)
def test_bad_input_is_reported_and_leaves_nothing_behind(
    arguments: list[str], capsys: pytest.CaptureFixture[str], content: bytes | None, options: list[str], says: str
) -> None:
    Path("corpus.txt").unlink()
    if content is not None:
        Path("corpus.txt").write_bytes(content)
    before = sorted(Path().iterdir())
    assert main([*arguments, *options]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert sorted(Path().iterdir()) == before


def test_a_folder_that_holds_other_things_is_not_replaced(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(Path("plan/thesis.txt"), ["years of work"])
    assert main(arguments) == 2
    assert "--out plan exists and is not an earlier plan" in capsys.readouterr().err
    assert Path("plan/thesis.txt").is_file()


def test_an_earlier_plan_is_replaced_as_a_whole(arguments: list[str]) -> None:
    assert main(arguments) == 0
    write_lines(Path("plan/old.csv"), ["old"])
    assert main(arguments) == 0
    assert not Path("plan/old.csv").exists()
