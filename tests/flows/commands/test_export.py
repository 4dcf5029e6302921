"""`vocabgraft export`: what it prints, and mistakes that leave nothing behind."""

import json
from pathlib import Path

import pytest

from tests.flows.invoke import cli

main = cli("export")
for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)


def test_it_writes_a_model_in_8_bits_and_says_what_that_costs(
    tiny_base: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("queries.txt").write_text("a dog\n\nstone in the kidney\n", encoding="utf-8")
    Path("documents.txt").write_text("the dog\nkidney stones\nwood\nblood\n", encoding="utf-8")
    given = ["--precision", "int8", "--out", "small", "--queries", "queries.txt", "--documents", "documents.txt"]
    assert main([str(tiny_base), *given, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["agreement"]["texts"] == 6 and told["agreement"]["queries"] == 2
    assert 0.9 < told["agreement"]["cosine_min"] < 1
    assert told == {"out": "small", **json.loads(Path("small/export.json").read_text(encoding="utf-8"))}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--to", "onxx"], "no format 'onxx' (do you mean onnx?); allowed: onnx"),
        (["--to", "static"], "model2vec 0.10 takes added tokens out"),
        (["--precision", "int4"], "no precision 'int4' (do you mean int8?)"),
        (["--documents", "texts.txt"], "--documents is given without --queries"),
        (["--queries", "empty.txt"], "empty.txt has no text"),
        (["--queries", "latin.txt"], "latin.txt is not UTF-8"),
        (["--queries", "missing.txt"], "missing.txt"),
    ],
)
def test_a_mistake_is_reported_before_anything_is_written(
    tiny_base: Path, in_folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    Path("empty.txt").write_text(" \n", encoding="utf-8")
    Path("texts.txt").write_text("a dog\n", encoding="utf-8")
    Path("latin.txt").write_bytes("Männer\n".encode("latin-1"))
    before = sorted(Path().iterdir())
    assert main([str(tiny_base), "--out", "out", *options]) == 2
    assert says in capsys.readouterr().err
    assert sorted(Path().iterdir()) == before


def test_a_model_that_is_not_there_is_named(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["./nowhere", "--out", "out"]) == 2
    assert "MODEL is './nowhere'" in capsys.readouterr().err
