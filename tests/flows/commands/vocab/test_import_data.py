"""The command that imports: its files are what validate_data reads, and a mistake leaves nothing behind."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tasks.validate_data import validate_data
from tests.conftest import ROOT
from tests.flows.invoke import cli
from tests.import_samples import ENTITY_BOMB, assertions, obo_text, skos_xml, write_gzip
from vocabgraft.config.params import Params, load_params, parse_params
from vocabgraft.storage.artifacts import hash_files, read_json

main = cli("vocab", "import")

OUT = Path("data/raw/imported")
SAMPLES: dict[str, Callable[[], Path]] = {
    "conceptnet": lambda: write_gzip(Path("assertions.csv.gz"), assertions()),
    "obo": lambda: _written("rocks.obo", obo_text()),
    "skos": lambda: _written("rocks.rdf", skos_xml()),
    "triples": lambda: _written("triples.tsv", plain_triples()),
}
WRITTEN = {
    "conceptnet": {"vocabulary.csv", "relations.csv"},
    "obo": {"vocabulary.csv", "relations.csv", "terms.csv", "contexts.txt"},
    "skos": {"vocabulary.csv", "relations.csv", "terms.csv", "contexts.txt"},
    "triples": {"vocabulary.csv", "relations.csv"},
}


def plain_triples() -> str:
    """Triples with a header: two relations that are frequent enough."""
    rows = [f"{relation}\t{head} {number}\t{tail}" for number in range(9) for relation, head, tail in PLAIN]
    return "\n".join(["relation\thead\ttail", *rows, ""])


PLAIN = (("AtLocation", "dog", "house"), ("IsA", "cat", "animal"))


def _written(name: str, text: str) -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


def import_sample(kind: str, *options: str) -> int:
    return main([kind, str(SAMPLES[kind]()), *options])


def with_section(printed: str) -> Params:
    """The project's parameters with what the command said to put there."""
    section = yaml.safe_load(printed[printed.index("# replace the section") :])
    return parse_params(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8")) | section, "params.yaml")


def validate(params: Params) -> None:
    """Run the stage on the project's raw files."""
    raw, out, site = Path("data/raw"), Path("data/validate_data"), Path("reports/docs")
    validate_data(
        raw,
        out,
        site,
        params.validate_data,
        params.base,
        params.extend_tokenizer,
        params.evaluate_model,
        params.resize_base,
        params.train_adapter,
    )


@pytest.mark.parametrize("kind", ["obo", "skos"])
def test_an_imported_ontology_passes_validate_data_without_a_rejected_row(
    kind: str, tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert import_sample(kind) == 0
    params = with_section(capsys.readouterr().out)
    assert params.validate_data.on_invalid == "fail"
    validate(params)
    report = read_json(Path("data/validate_data/report.json"))
    assert report["rejected"] == 0
    assert report["new_tokens"]["special"] == 2
    assert report["new_tokens"]["word"] > 10
    assert all(report["datasets"][name]["train"] for name in ("relations", "terms"))


@pytest.mark.parametrize(
    ("kind", "options", "relations"), [("conceptnet", ["--min-weight", "0.5"], 3), ("triples", [], 2)]
)
def test_imported_triples_pass_validate_data_without_a_rejected_row(
    kind: str, options: list[str], relations: int, tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert import_sample(kind, *options) == 0
    printed = capsys.readouterr().out
    # The gate of the project names a dataset that ConceptNet does not give; the command says which to name.
    gate = Path("params.yaml").read_text(encoding="utf-8").replace("terms.new_word.mrr", "relations.all.mrr")
    Path("params.yaml").write_text(gate, encoding="utf-8")
    assert "benefit: relations.all.mrr" in printed
    params = with_section(printed)
    validate(params)
    assert read_json(Path("data/validate_data/report.json"))["new_tokens"] == {"special": relations}


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_files_are_written_and_reported_with_their_rows(
    kind: str, tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert import_sample(kind) == 0
    assert {path.name for path in OUT.iterdir()} == WRITTEN[kind]
    printed = capsys.readouterr().out
    assert all(name in printed for name in WRITTEN[kind])
    assert f" {len(pd.read_csv(OUT / 'relations.csv'))} " in printed


IMPORT_ALL = """
import json, sys
from tests.flows.invoke import cli
for kind, file, *options in json.loads(sys.argv[1]):
    assert cli("vocab", "import")([kind, file, "--out", f"imported/{kind}", "--overwrite", *options]) == 0, kind
"""


def test_two_imports_of_one_file_write_the_same_bytes(tiny_project: Path) -> None:
    base, imported = load_params().base.model, Path("imported")
    imports = [
        [kind, str(sample()), *(["--base", base] if kind in ("obo", "skos") else [])]
        for kind, sample in SAMPLES.items()
    ]
    written = []
    # In processes of their own, since the order of a set differs from one to the next.
    for seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", IMPORT_ALL, json.dumps(imports)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        written.append(({kind: hash_files(imported / kind) for kind in SAMPLES}, ran.stdout))
    assert written[0] == written[1]
    assert all(written[0][0].values())


def test_files_that_are_there_stay_unless_it_is_said_otherwise(
    tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = hash_files(Path("data"))
    assert import_sample("obo", "--out", "data/raw") == 2
    assert hash_files(Path("data")) == before
    message = capsys.readouterr().err
    assert "vocabulary.csv, relations.csv, terms.csv, contexts.txt" in message
    assert "--overwrite" in message


def test_the_options_reach_the_readers(tiny_project: Path) -> None:
    assert import_sample("conceptnet", "--language", "en", "--min-weight", "2", "--relations", "IsA") == 0
    assert set(pd.read_csv(OUT / "relations.csv")["relation"]) == {"IsA"}
    assert import_sample("obo", "--scopes", "exact", "--overwrite", "--min-uses", "2") == 0
    assert not pd.read_csv(OUT / "terms.csv")["positive"].str.startswith("fresh").any()


def test_a_folder_outside_of_the_raw_data_is_said_to_need_a_move(
    tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert import_sample("skos", "--out", "elsewhere/rocks", "--base", load_params().base.model) == 0
    printed = capsys.readouterr().out
    assert "first move elsewhere/rocks into data/raw" in printed
    assert "vocabulary: rocks/vocabulary.csv" in printed


FAULTS: dict[str, tuple[list[str], bytes, str]] = {
    "gzip cut short": (["conceptnet", "in.gz"], gzip.compress("\n".join(assertions()).encode())[:300], "truncated"),
    "no row left": (["conceptnet", "in.gz", "--min-weight", "99"], "\n".join(assertions()).encode(), "--min-weight"),
    "weight no number": (["conceptnet", "in.gz", "--min-weight", "nan"], b"x", "min_weight is nan"),
    "OBO cut short": (["obo", "in.obo"], obo_text().encode()[:1500], "truncated"),
    "unknown scope": (["obo", "in.obo", "--scopes", "NEAR"], obo_text().encode(), "allowed: EXACT"),
    "no word frequent enough": (["obo", "in.obo", "--min-uses", "999"], obo_text().encode(), "--min-uses"),
    "base not there": (["obo", "in.obo", "--base", "./none"], obo_text().encode(), "--base is './none'"),
    "columns not named": (["triples", "in.tsv"], b"IsA\tdog\tanimal\n", "--columns relation,head,tail"),
    "entity bomb": (["skos", "in.rdf"], ENTITY_BOMB.encode(), "document type"),
    "unknown ending": (["skos", "in.owl"], skos_xml().encode(), "'.owl'"),
    "empty": (["obo", "in.obo"], b"", "is empty"),
    "folder is a file": (["obo", "in.obo", "--out", "params.yaml"], obo_text().encode(), "give --out a folder"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mistake_ends_in_one_message_and_exit_code_2_with_nothing_written(
    fault: str, tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, content, says = FAULTS[fault]
    Path(arguments[1]).write_bytes(content)
    before = hash_files(tiny_project)
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("vocabgraft: ")
    assert says in message
    assert "Traceback" not in message
    assert hash_files(tiny_project) == before


def test_a_missing_file_is_reported(tiny_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["obo", "none.obo"]) == 2
    assert "none.obo is missing" in capsys.readouterr().err


def test_a_failed_write_leaves_nothing_half_written(
    tiny_project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    sample = SAMPLES["obo"]()
    before = hash_files(tiny_project)
    monkeypatch.setattr("vocabgraft.importers.rows._write", full)
    assert main(["obo", str(sample)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert hash_files(tiny_project) == before
    assert not list(Path("data/raw").glob(".imported*"))
