"""What a user can get wrong: one clear message, exit code 1, and nothing touched or half written."""

import csv
import errno
import importlib
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tasks import validate_data as stage
from tasks.support.stage import run_stage
from tasks.validate_data import validate_data
from vocabgraft.data.judgement import JudgedTable, Judgement
from vocabgraft.storage.artifacts import hash_files

from ..conftest import ROOT, build_tiny_project

RAW, OUT, SITE = Path("data/raw"), Path("data/validate_data"), Path("reports/data_docs")
ARGUMENTS = ["--raw", str(RAW), "--out", str(OUT), "--site", str(SITE)]
TABLES = {
    "validate_data.vocabulary": "vocabulary",
    "validate_data.retention": "retention",
    "validate_data.datasets.0.files.train": "relations",
    "validate_data.datasets.1.files.train": "terms",
}
Plant = Callable[[], object]


@dataclass(frozen=True)
class Fault:
    """What is wrong, and what the message must say: where, what was seen, what is allowed, what to do."""

    name: str
    plant: Plant
    says: tuple[str, ...]


def all_of(*plants: Plant) -> Plant:
    return lambda: [plant() for plant in plants]


def write(name: str, content: str | bytes) -> Plant:
    return lambda: (RAW / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def append(name: str, *lines: str | bytes) -> Plant:
    added = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
    return lambda: (RAW / name).write_bytes((RAW / name).read_bytes() + added)


def replace(name: str, old: str, new: str) -> Plant:
    return lambda: (RAW / name).write_text((RAW / name).read_text().replace(old, new, 1))


def rename(name: str, new: str) -> Plant:
    return lambda: (RAW / name).rename(RAW / new)


def setting(key: str, value: Any) -> Plant:
    def plant() -> None:
        params = yaml.safe_load(Path("params.yaml").read_text())
        *parents, last = key.split(".")
        place = params
        for parent in parents:
            place = place[int(parent)] if isinstance(place, list) else place[parent]
        place[last] = value
        Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    return plant


def base_folder(*names: str) -> Plant:
    """A base that is a folder with these files: weights without a tensor, anything else of one byte."""

    def plant() -> None:
        Path("base").mkdir()
        for name in names:
            empty = (2).to_bytes(8, "little") + b"{}"
            (Path("base") / name).write_bytes(empty if name.endswith(".safetensors") else b"x")

    return all_of(plant, setting("base.model", "./base"))


TERMS_FILE, TERMS_HELD_OUT = "validate_data.datasets.1.files.train", "validate_data.datasets.1.held_out"

# Refused before any row is judged.
UNREADABLE = [
    Fault(
        "a missing file",
        (RAW / "terms.csv").unlink,
        ("data/raw/terms.csv is missing", "put it there, or correct its name in params.yaml"),
    ),
    Fault(
        "a table with a wrong ending",
        all_of(rename("terms.csv", "terms.xlsx"), setting(TERMS_FILE, "terms.xlsx")),
        ("data/raw/terms.xlsx ends in '.xlsx'", "allowed: .csv, .tsv, .json, .jsonl, .parquet"),
    ),
    Fault(
        "contexts with a wrong ending",
        all_of(rename("contexts.txt", "contexts.csv"), setting("validate_data.contexts", ["contexts.csv"])),
        ("data/raw/contexts.csv ends in '.csv'", "allowed: .txt"),
    ),
    Fault("an empty table", write("terms.csv", ""), ("data/raw/terms.csv is empty", "add rows or take it out")),
    Fault(
        "an empty context file",
        write("contexts.txt", ""),
        ("data/raw/contexts.txt is empty", "add rows or take it out"),
    ),
    Fault(
        "contexts of blank lines",
        write("contexts.txt", "\n  \n"),
        ("data/raw/contexts.txt has only blank lines", "add sentences or take it out"),
    ),
    Fault(
        "a header without rows",
        write("terms.csv", "anchor,positive\n"),
        ("data/raw/terms.csv has a header and no rows", "add rows or take it out of params.yaml"),
    ),
    Fault(
        "JSON without records",
        all_of(write("terms.json", "[]"), setting(TERMS_FILE, "terms.json")),
        ("data/raw/terms.json has no rows", "add rows or take it out of params.yaml"),
    ),
    Fault(
        "a missing column",
        replace("terms.csv", "anchor,positive", "anchor,positiv"),
        ("data/raw/terms.csv: column positive is missing", "it has anchor, positiv, group", "needed: anchor, positive"),
    ),
    Fault(
        "a repeated column",
        replace("terms.csv", "anchor,positive,group", "anchor,positive,positive"),
        ("data/raw/terms.csv: column positive appears more than once", "keep one"),
    ),
    Fault(
        "broken UTF-8 in a table",
        append("terms.csv", b"caf\xe9,b,c"),
        ("terms.csv row 50: is not UTF-8 (byte 0xe9)", "save the file as UTF-8"),
    ),
    Fault(
        "broken UTF-8 in contexts",
        append("contexts.txt", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", b"caf\xe9"),
        ("contexts.txt row 50: is not UTF-8 (byte 0xe9)", "save the file as UTF-8"),
    ),
    Fault(
        "a NUL",
        append("terms.csv", "a\0b,c,d"),
        ("terms.csv row 50: contains a NUL", "save the file as UTF-8"),
    ),
    Fault(
        "a row with too many fields",
        append("terms.csv", "a,b,c,d,e"),
        ("terms.csv row 50: has 5 fields, but the header has 3", "quote"),
    ),
    Fault(
        "a quote that is never closed",
        append("terms.csv", 'a,"b,c', "d,e,f"),
        ("terms.csv row 50: cannot be read", "check its quotes"),
    ),
    Fault(
        "a line that is not JSON",
        all_of(
            write("terms.jsonl", '{"anchor": "a", "positive": "b"}\n{"anchor": oops}\n'),
            setting(TERMS_FILE, "terms.jsonl"),
        ),
        ("terms.jsonl row 2: is not JSON", "one record per line"),
    ),
    Fault(
        "Parquet that is none",
        all_of(write("terms.parquet", "anchor"), setting(TERMS_FILE, "terms.parquet")),
        ("data/raw/terms.parquet cannot be read as parquet", "save it again"),
    ),
    Fault(
        "an unknown key",
        setting("validate_data.min_use", 3),
        ("params.yaml: unknown key 'validate_data.min_use' (value 3)", "allowed here: vocabulary, contexts, retention"),
    ),
    Fault(
        "an unknown key in a nested section",
        setting("train_adapter.lora.rank", 3),
        ("unknown key 'train_adapter.lora.rank' (value 3)", "allowed here: r, alpha, dropout, target_modules"),
    ),
    Fault(
        "a value of a wrong type",
        setting("validate_data.min_uses", "8"),
        ("params.yaml: key 'validate_data.min_uses' is '8'", "it should be a valid integer"),
    ),
    Fault(
        "params.yaml that is no YAML",
        lambda: Path("params.yaml").write_text("seed: 1\nbase: ["),
        ("params.yaml is not YAML", "line 2"),
    ),
    Fault(
        "no params.yaml",
        lambda: Path("params.yaml").unlink(),
        ("params.yaml is missing", "run from the project's root"),
    ),
    Fault(
        "a base with another checksum",
        setting("base.sha256", "0" * 64),
        (f"base.sha256 is {'0' * 64}, but the weights of", "put its value into params.yaml, otherwise restore"),
    ),
    Fault(
        "a base folder that is not there",
        setting("base.model", "./nowhere"),
        ("base.model is './nowhere', but that folder is not there", "correct the name"),
    ),
    Fault(
        "a base package that is not installed",
        setting("base.model", "package:not_installed/model"),
        ("base.model is 'package:not_installed/model'", "no package 'not_installed' is installed; install it"),
    ),
    Fault(
        "a package without the base folder",
        setting("base.model", "package:vocabgraft/model"),
        ("base.model is 'package:vocabgraft/model', but that folder is not there", "correct the name"),
    ),
    Fault(
        "a Hub that cannot be reached",
        setting("base.model", "someone/some-model"),
        ("base.model is 'someone/some-model' at revision main", "(HF_HUB_OFFLINE is set)", "or download it once"),
    ),
    Fault(
        "a name that is neither a folder nor a Hub id",
        setting("base.model", "a/b/c"),
        ("base.model is 'a/b/c', which is neither a folder nor a Hub id", "namespace/repo_name"),
    ),
    Fault(
        "a base without safetensors",
        base_folder("pytorch_model.bin", "tokenizer.json"),
        ("base.model is './base': base/pytorch_model.bin is a pickle", "only safetensors are loaded"),
    ),
    Fault(
        "a base without a fast tokenizer",
        base_folder("model.safetensors"),
        ("base has no tokenizer.json", "save the model once with current transformers"),
    ),
]

# Refused by an expectation, so that Data Docs show it.
REFUSED = [
    Fault(
        "an empty field",
        append("terms.csv", "a kidney,,x"),
        ("1 problem ", "terms.csv row 50, positive ''", "is empty; fill it or take the row out"),
    ),
    Fault(
        "empty fields of every table",
        all_of(
            append("vocabulary.csv", ",word,x"),
            append("relations.csv", ",IsA,x"),
            append("retention.csv", ",x,0.1", "a b,c d,"),
            append("terms.csv", "too few fields"),
        ),
        (
            "vocabulary.csv row 8, token ''",
            "relations.csv row 50, head ''",
            "retention.csv row 64, sentence1 ''",
            "retention.csv row 65, score '': is empty; allowed: a number from 0 to 1",
            "terms.csv row 50, positive ''",
        ),
    ),
    Fault(
        "a row after a blank line and a field of two lines",
        append("terms.csv", "", '"a\nkidney",blood,y', "a dog,,x"),
        ("terms.csv row 53, positive ''",),
    ),
    Fault(
        "a score that is no number",
        append("retention.csv", "a b,c d,high"),
        ("1 problem ", "retention.csv row 64, score 'high'", "is not a number; allowed: a number from 0 to 1"),
    ),
    Fault(
        "a score out of range",
        append("retention.csv", "a b,c d,1.5"),
        ("1 problem ", "retention.csv row 64, score '1.5'", "is out of range; allowed: a number from 0 to 1"),
    ),
    Fault(
        "an unknown relation",
        append("relations.csv", "x y,PartOf,z"),
        ("1 problem ", "relations.csv row 50, relation 'PartOf'", "has no token in the vocabulary", "add `<|NAME|>`"),
    ),
    Fault(
        "a repeated token",
        append("vocabulary.csv", "nephrolith,word,again"),
        (
            "1 problem ",
            "vocabulary.csv row 8, token 'nephrolith'",
            "repeats nephrolith",
            "keep one",
        ),
    ),
    Fault(
        "a word that differs in case only",
        append("vocabulary.csv", "Nephrolith,word,again"),
        ("vocabulary.csv row 8, token 'Nephrolith': repeats nephrolith", "keep one"),
    ),
    Fault(
        "a special token that differs in case only",
        append("vocabulary.csv", "<|isa|>,special,again"),
        ("vocabulary.csv row 8, token '<|isa|>': repeats <|IsA|>", "keep one"),
    ),
    Fault(
        "a word that is one token in the base",
        append("vocabulary.csv", "kidney,word,again"),
        ("1 problem ", "vocabulary.csv row 8, token 'kidney'", "is one token in the base already; take it out"),
    ),
    Fault(
        "a token that is nothing to the base",
        all_of(append("vocabulary.csv", "\u0301,symbol,an accent"), setting("validate_data.min_uses", 0)),
        ("1 problem ", "vocabulary.csv row 8, token", "is empty after the base's normalization"),
    ),
    Fault(
        "special tokens that texts hold in another form",
        all_of(
            append("vocabulary.csv", "<|Has\u200bA|>,special,has a", "<|a\u0301|>,special,is a"),
            setting("validate_data.min_uses", 0),
        ),
        (
            "2 problems ",
            "row 8, token '<|Has\\u200bA|>': is changed to <|hasa|>",
            "row 9, token '<|a\u0301|>': is changed to <|\u00e1|>",
        ),
    ),
    Fault(
        "an unknown symbol without a description, and with one that is unknown too",
        all_of(
            append("vocabulary.csv", "\u222e,symbol,", "\u222f,symbol,\u222e", "<|PartOf|>,special,\u222e"),
            setting("validate_data.min_uses", 0),
        ),
        (
            "3 problems ",
            "row 8, description '': is empty",
            "row 9, description '\u222e': has no subword token that the base knows; describe it in words",
            "row 10, description '\u222e': has no subword token that the base knows",
        ),
    ),
    Fault(
        "a token that is too long",
        all_of(append("vocabulary.csv", f"{'x' * 65},word,long"), setting("validate_data.min_uses", 0)),
        ("1 problem ", "is too long; allowed: 64 characters (extend_tokenizer.max_token_characters)"),
    ),
    Fault(
        "a token of spaces",
        append("vocabulary.csv", "   ,word,again"),
        ("vocabulary.csv row 8, token '   '", "has only spaces"),
    ),
    Fault(
        "a token of two words",
        append("vocabulary.csv", "kidney stone,word,again"),
        ("vocabulary.csv row 8, token 'kidney stone'", "whitespace", "a token is one word"),
    ),
    Fault(
        "retention with constant scores",
        write("retention.csv", "sentence1,sentence2,score\na,b,0.5\nc,d,0.5\n"),
        ("1 problem ", "retention.csv: all scores are the same", "allowed: two or more different scores; add pairs"),
    ),
    Fault(
        "contradicting retention pairs",
        append("retention.csv", "a b,c d,0.1", "C d,a  b,0.2"),
        ("1 problem ", "retention.csv row 65, score '0.2'", "contradicts retention.csv row 64", "keep one"),
    ),
    Fault(
        "contradicting triples",
        all_of(
            append("vocabulary.csv", "<|Antonym|>,special,is the opposite of"),
            append("relations.csv", "kind nep,Antonym,old nephrolith"),
            setting("validate_data.min_uses", 0),
        ),
        ("1 problem ", "relations.csv row 50, relation 'Antonym'", "contradicts relations.csv row 2"),
    ),
    Fault(
        "a text in two splits",
        all_of(
            write("test.csv", "anchor,positive,group\na nephrolith of the dog,an unseen text,q\n"),
            setting("validate_data.datasets.1.files.test", "test.csv"),
            setting(TERMS_HELD_OUT, {"validation": 0.0, "test": 0.0}),
        ),
        ("1 problem ", "terms.csv row 2, anchor 'a nephrolith of the dog'", "leaks", "in test.csv row 2 (test)"),
    ),
    Fault(
        "a word used too rarely",
        append("vocabulary.csv", "unusedword,word,again"),
        ("1 problem ", "row 8, token 'unusedword'", "is used in 0 texts", "needed: 2 (validate_data.min_uses)"),
    ),
    Fault(
        "too many new words",
        setting("validate_data.max_new_tokens", 3),
        ("1 problem ", "vocabulary.csv: has 6 rows; allowed: 1 to 3", "(validate_data.max_new_tokens); take some out"),
    ),
]


def run(arguments: Sequence[str] = ARGUMENTS) -> int:
    return run_stage(validate_data, arguments)


def outputs() -> list[str]:
    """What lies beside the raw data, hidden work folders among it."""
    return sorted(path.name for path in Path("data").iterdir() if path != RAW)


def assert_one_message(errors: str, said: str, says: Sequence[str]) -> None:
    assert errors.startswith("validate_data: ")
    assert errors.count("validate_data: ") == 1
    assert said == ""
    assert "Traceback" not in errors
    for part in says:
        assert part in errors


def accepted(folder: Path) -> dict[str, dict[str, list[Any]]]:
    """The accepted tables by file name."""
    return {
        path.relative_to(folder).as_posix(): pq.read_table(path).to_pydict()
        for path in sorted(folder.rglob("*.parquet"))
    }


@pytest.fixture(scope="module")
def clean_run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The project's folder after a run over data that nothing is wrong with."""
    root = tmp_path_factory.mktemp("clean")
    build_tiny_project(root, tiny_base)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert run() == 0
    yield root


@pytest.mark.parametrize("fault", UNREADABLE, ids=lambda fault: fault.name)
def test_unreadable_input_gives_one_message_and_no_output(
    fault: Fault, tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fault.plant()
    before = hash_files(RAW)
    assert run() == 1
    captured = capsys.readouterr()
    assert_one_message(captured.err, captured.out, fault.says)
    assert hash_files(RAW) == before
    assert outputs() == []


@pytest.mark.parametrize("fault", REFUSED, ids=lambda fault: fault.name)
def test_refused_rows_give_one_message_data_docs_and_no_output(
    fault: Fault, tiny_project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks.support import expectations

    judged: list[Judgement] = []
    results: dict[str, list[Any]] = {}

    def write_of_stage(judgement: Judgement, site: Path) -> None:
        judged.append(judgement)
        own_of_stage(judgement, site)

    def write_data_docs(tables: Sequence[JudgedTable], site: Path) -> None:
        results.update(own(tables, site))

    own, own_of_stage = expectations.write_data_docs, stage._write_data_docs
    monkeypatch.setattr(expectations, "write_data_docs", write_data_docs)
    monkeypatch.setattr(stage, "_write_data_docs", write_of_stage)
    fault.plant()
    before = hash_files(RAW)
    assert run() == 1
    captured = capsys.readouterr()
    assert_one_message(
        captured.err,
        captured.out,
        [*fault.says, "Correct them", f"all are in {SITE}/rejected.csv", f"Data Docs: {SITE}/index.html"],
    )
    assert (SITE / "index.html").is_file()
    assert hash_files(RAW) == before
    assert outputs() == []
    # The expectations that fail are those whose rules refused rows.
    (judgement,) = judged
    for name, table in judgement.tables.items():
        refused = {refusal.kind for refusal in table.refusals if not refusal.follows}
        failed = {result.expectation_config.meta["reason"] for result in results.get(name, []) if not result.success}
        assert failed == refused


@pytest.mark.usefixtures("without_data_docs")
def test_a_fault_of_a_whole_file_is_not_said_to_be_mended_by_a_quarantine(
    tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setting("validate_data.max_new_tokens", 3)()
    setting("validate_data.on_invalid", "quarantine")()
    assert run() == 1
    assert "quarantine" not in capsys.readouterr().err


@pytest.mark.usefixtures("without_data_docs")
def test_only_the_first_problems_are_listed_and_all_are_counted(
    tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append("retention.csv", *(f"dog {number},cat {number},2" for number in range(12)))()
    assert run() == 1
    errors = capsys.readouterr().err
    assert "12 problems in the raw data:" in errors
    assert errors.count("is out of range") == 10
    assert "and 2 more of this kind" in errors
    with (SITE / "rejected.csv").open(encoding="utf-8", newline="") as stream:
        assert [row["reason"] for row in csv.DictReader(stream)].count(
            "is out of range; allowed: a number from 0 to 1"
        ) == 12


@pytest.mark.usefixtures("without_data_docs")
def test_a_failing_run_leaves_the_earlier_output_as_it_was(
    tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    OUT.mkdir()
    (OUT / "manifest.json").write_text("earlier")
    append("retention.csv", "a b,c d,1.5")()
    assert run() == 1
    assert outputs() == [OUT.name]
    assert [path.name for path in OUT.iterdir()] == ["manifest.json"]
    assert (OUT / "manifest.json").read_text() == "earlier"


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "data/somewhere")


def forbidden(*_: object, **__: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", "data/somewhere")


@pytest.mark.parametrize(
    ("place", "failure", "says"),
    [
        ("tasks.validate_data.pq.write_table", full_disk, "the disk is full while writing data/somewhere; free some"),
        (
            "vocabgraft.storage.artifacts.write_json",
            full_disk,
            "the disk is full while writing data/somewhere; free some",
        ),
        (
            "vocabgraft.storage.atomic.tempfile.mkdtemp",
            forbidden,
            "no permission to read or write data/somewhere; ",
        ),
    ],
    ids=["full disk", "full disk at the manifest", "no permission"],
)
def test_a_write_that_fails_gives_one_message_and_no_output(
    place: str,
    failure: Callable[..., None],
    says: str,
    tiny_project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A large share of new tokens is warned of once the data is good, which the empty standard output must not show.
    monkeypatch.setattr("tasks.validate_data.LARGE_VOCABULARY", 1.0)
    monkeypatch.setattr("tasks.validate_data.COMMON_SHARE", 1.0)
    monkeypatch.setattr(place, failure)
    before = hash_files(RAW)
    assert run() == 1
    captured = capsys.readouterr()
    assert_one_message(captured.err, captured.out, [says, "run again"])
    assert hash_files(RAW) == before
    assert outputs() == []


def test_a_raw_file_that_may_not_be_read_is_named(
    tiny_project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        return forbidden() if path.name == "terms.csv" else opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert run() == 1
    captured = capsys.readouterr()
    assert_one_message(captured.err, captured.out, ["data/raw/terms.csv cannot be read: no permission"])


def warnings() -> list[str]:
    found: list[str] = json.loads((OUT / "report.json").read_text())["warnings"]
    return found


@pytest.mark.usefixtures("without_data_docs")
def test_what_is_allowed_but_doubtful_is_warned_of_and_reported(
    tiny_project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tasks.validate_data.COMMON_SHARE", 0.15)
    append("vocabulary.csv", "Nephro,word,of the kidney", "hepat,word,of the liver")()
    setting("validate_data.min_uses", 1)()
    assert run() == 0
    large, rare, inside, common = warnings()
    assert "2 new tokens are in fewer than 8 training texts (Nephro in 0, hepat in 0)" in rare
    assert "8 new tokens are " in large
    assert "2 new tokens are part of another (Nephro in nephrolith, hepat in hepatoma)" in inside
    assert "2 new words are common in general text (nephrolith in 20, thrombopenia in 20 of " in common
    said = capsys.readouterr().out
    assert all(f"warning: {warning}" in said for warning in (large, rare, inside, common))


@pytest.mark.usefixtures("without_data_docs")
def test_a_harmless_vocabulary_is_not_warned_of(tiny_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.validate_data.LARGE_VOCABULARY", 1.0)
    monkeypatch.setattr("tasks.validate_data.COMMON_SHARE", 0.5)
    assert run() == 0
    assert warnings() == []


def dvc_stages() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return loaded


# The control reads nothing where params.yaml does not ask for it.
DOWNSTREAM = [name for name in dvc_stages() if name not in ("validate_data", "train_control")]


def run_downstream(name: str) -> int:
    module = importlib.import_module(f"tasks.{name}")
    return run_stage(getattr(module, name), shlex.split(dvc_stages()[name]["cmd"])[3:])


def data_deps(name: str) -> list[Path]:
    return [Path(dep) for dep in dvc_stages()[name]["deps"] if dep.startswith("data/")]


@pytest.mark.parametrize("stage", DOWNSTREAM)
def test_a_missing_upstream_artifact_is_named_with_the_stage_that_makes_it(
    stage: str, tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_downstream(stage) == 1
    errors = capsys.readouterr().err
    named = [dep for dep in data_deps(stage) if f"{stage}: {dep}" in errors]
    assert named, errors
    assert " is missing; " in errors
    assert any(f"`dvc repro {dep.parts[1]}` makes it" in errors for dep in named)
    assert outputs() == []


@pytest.mark.parametrize("stage", DOWNSTREAM)
def test_a_half_written_upstream_artifact_is_refused_and_named(
    stage: str, tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for dep in data_deps(stage):
        (dep.parent if dep.suffix else dep).mkdir(parents=True, exist_ok=True)
        if dep.suffix:
            dep.write_text("{}")
    before = outputs()
    assert run_downstream(stage) == 1
    errors = capsys.readouterr().err
    assert "manifest.json" in errors
    assert "`dvc checkout data/" in errors or "`dvc repro " in errors
    assert outputs() == before


def test_a_damaged_upstream_artifact_is_refused_and_named(
    tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    OUT.mkdir()
    (OUT / "manifest.json").write_text("{}")
    (OUT / "base.json").write_text('{"model": ')
    assert run_downstream("extend_tokenizer") == 1
    errors = capsys.readouterr().err
    assert "data/validate_data/base.json is damaged" in errors
    assert "`dvc checkout data/validate_data` brings it back" in errors


@pytest.mark.parametrize(
    ("known", "there", "hinted"), [("validate_data", False, True), ("validate_data", True, False), ("x", False, False)]
)
def test_the_way_back_is_named_when_dvc_removed_a_known_output(
    known: str, there: bool, hinted: bool, tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("dvc.lock").write_text(f"schema: '2.0'\nstages:\n  {known}:\n    cmd: x\n")
    if there:
        OUT.mkdir()
    (RAW / "terms.csv").unlink()
    assert run() == 1
    assert ("`dvc checkout data/validate_data`" in capsys.readouterr().err) is hinted


def rejected() -> list[dict[str, str]]:
    with (OUT / "rejected.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.usefixtures("without_data_docs")
def test_a_quarantine_drops_the_refused_rows_alone_and_says_why(
    tiny_project: Path, clean_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setting("validate_data.on_invalid", "quarantine")()
    append("vocabulary.csv", "kidney,word,again")()
    append("terms.csv", "a cat,,x")()
    append("retention.csv", "a b,c d,1.5")()
    append("contexts.txt", "the nephrolith of the a is high")()
    append("relations.csv", "x y,PartOf,z")()
    before = hash_files(RAW)
    assert run() == 0
    assert "warning: 4 rows quarantined" in capsys.readouterr().out
    seen = [(row["file"], row["row"], row["column"], row["value"]) for row in rejected()]
    assert seen == [
        ("vocabulary.csv", "8", "token", "kidney"),
        ("retention.csv", "64", "score", "1.5"),
        ("relations.csv", "50", "relation", "PartOf"),
        ("terms.csv", "50", "positive", ""),
    ]
    assert all(row["reason"] for row in rejected())
    assert accepted(OUT) == accepted(clean_run / OUT)
    report = json.loads((OUT / "report.json").read_text())
    assert (report["rejected"], report["repeated"]) == (4, {"contexts": 1})
    assert hash_files(RAW) == before


@pytest.mark.usefixtures("without_data_docs")
def test_a_quarantined_relation_takes_its_triples_with_it(tiny_project: Path, clean_run: Path) -> None:
    setting("validate_data.on_invalid", "quarantine")()
    append("vocabulary.csv", "<|PartOf|>,special,")()
    append("relations.csv", "x y,PartOf,z", "x z,PartOf,y")()
    assert run() == 0
    assert {(row["file"], row["row"]) for row in rejected()} == {
        ("vocabulary.csv", "8"),
        ("relations.csv", "50"),
        ("relations.csv", "51"),
    }
    assert accepted(OUT) == accepted(clean_run / OUT)


@pytest.mark.usefixtures("without_data_docs")
def test_more_than_the_allowed_share_fails_in_spite_of_the_quarantine(
    tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setting("validate_data.on_invalid", "quarantine")()
    setting("validate_data.max_rejected_fraction", 0.001)()
    append("retention.csv", "a b,c d,1.5")()
    assert run() == 1
    captured = capsys.readouterr()
    says = ["1 row", "allowed: 0.1%", "(validate_data.max_rejected_fraction)", "retention.csv row 64, score '1.5'"]
    assert_one_message(captured.err, captured.out, says)
    assert outputs() == []


def convert(name: str, ending: str) -> None:
    frame = pd.read_csv(RAW / f"{name}.csv", keep_default_na=False)
    (RAW / f"{name}.csv").unlink()
    path, records = RAW / f"{name}{ending}", frame.to_dict("records")
    if ending == ".tsv":
        frame.to_csv(path, sep="\t", index=False)
    elif ending == ".json":
        path.write_text(json.dumps(records))
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        pq.write_table(pa.Table.from_pylist(records), path)


@pytest.mark.usefixtures("without_data_docs")
@pytest.mark.parametrize("ending", [".tsv", ".json", ".jsonl", ".parquet"])
def test_every_kind_of_table_gives_the_same_accepted_data(ending: str, tiny_project: Path, clean_run: Path) -> None:
    for key, name in TABLES.items():
        convert(name, ending)
        setting(key, f"{name}{ending}")()
    assert run() == 0
    assert accepted(OUT) == accepted(clean_run / OUT)


def test_a_good_run_writes_every_table_its_data_docs_and_no_rejection(clean_run: Path) -> None:
    tables = {
        f"datasets/{name}/{split}" for name in ("relations", "terms") for split in ("train", "validation", "test")
    }
    tables |= {"vocabulary", "contexts", "retention", "general_texts"}
    assert {name.removesuffix(".parquet") for name in accepted(clean_run / OUT)} == tables
    assert (clean_run / OUT / "rejected.csv").read_text() == "file,row,column,value,reason\n"
    assert (clean_run / OUT / "manifest.json").is_file()
    index = (clean_run / SITE / "index.html").read_text(encoding="utf-8")
    for name in ("vocabulary", "contexts", "retention", "relations", "terms"):
        assert name in index
