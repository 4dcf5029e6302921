"""Code in a model's folder: told and refused with nothing of it run, or identified, run and taken along."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.coded_base import CONFIGURATION, HELPER, MODEL, NAMED, RAN, SOURCES, change_config
from vocabgraft.config.stages import BaseParams, PromptParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder.embedding_tensor import find_embedding, read_rows
from vocabgraft.model_folder.remote_code import (
    check_code,
    code_hashes,
    copy_code,
    describe_code,
    drop_auto_maps,
    named_code,
)
from vocabgraft.models.base import identify_base, load_model, locate_base, own_module_types
from vocabgraft.models.encode import encode
from vocabgraft.models.resize import write_resized
from vocabgraft.storage.artifacts import digest_of, file_sha256, read_json, write_json
from vocabgraft.tokens.tokenizer import load_tokenizer

TEXTS = ["a dog", "the stone in the kidney is a pain of the dog"]
LAYER = """
import os
import torch

if os.environ.get("VOCABGRAFT_TEST_CODE_RAN"):
    open(os.environ["VOCABGRAFT_TEST_CODE_RAN"], "a").close()


class Doubled(torch.nn.Module):
    def forward(self, features):
        features["sentence_embedding"] = features["sentence_embedding"] * 2
        return features

    def save(self, *args, **kwargs):
        pass

    @classmethod
    def load(cls, *args, **kwargs):
        return cls()
"""


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that code of a base writes when it is run."""
    monkeypatch.setenv(RAN, str(tmp_path / "ran"))
    return tmp_path / "ran"


@pytest.fixture
def coded(coded_base: Path, tmp_path: Path) -> Path:
    """A copy of the base with code, to be changed.

    Under a name of its own: of two folders of one name in one process transformers keeps the first one's model class,
    where the configuration's file is the same.
    """
    return Path(shutil.copytree(coded_base, tmp_path / tmp_path.name))


@pytest.fixture
def plain(tiny_base: Path, coded_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base, to be changed; loads of it keep code where the tests do."""
    return Path(shutil.copytree(tiny_base, tmp_path / "plain"))


def with_layer(folder: Path) -> Path:
    """Put a module of the folder's own after the others."""
    (folder / "doubling.py").write_text(LAYER, encoding="utf-8")
    modules = read_json(folder / "modules.json")
    entry = {"idx": len(modules), "name": str(len(modules)), "path": "3_Doubled", "type": "doubling.Doubled"}
    write_json(folder / "modules.json", [*modules, entry])
    return folder


def resized(base: Path, destination: Path, trust_remote_code: bool) -> Path:
    """The base with one more row, as `resize_base` writes it."""
    tokenizer = load_tokenizer(base, trust_remote_code)
    tokenizer.add_tokens(["nephrolith"])
    destination.mkdir()
    row = read_rows(base, [7], trust_remote_code)
    write_resized(base, tokenizer, row, PromptParams(), None, destination, trust_remote_code)
    return destination


def test_a_base_with_code_is_refused_with_what_it_names_and_nothing_is_run(coded_base: Path, ran: Path) -> None:
    for refused in (lambda: check_code(coded_base, False), lambda: load_model(coded_base, device="cpu")):
        with pytest.raises(VocabgraftError) as caught:
            refused()
        told = str(caught.value)
        assert "set base.trust_remote_code to true" in told
        assert "none of it was run" in told
        assert NAMED["AutoModel"] in told
        assert all(file in told for file in (CONFIGURATION, MODEL, HELPER))
    assert not ran.exists()


def test_no_other_way_into_the_folder_runs_its_code_either(
    coded_base: Path, ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers asks on the terminal where it was not told, and who answers yes has run it.
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    load_tokenizer(coded_base)
    with pytest.raises(VocabgraftError, match=r"needs base\.trust_remote_code"):
        find_embedding(coded_base)
    assert not ran.exists()


def test_trusted_code_is_what_the_model_is_made_of(coded: Path, tiny_base: Path, ran: Path) -> None:
    found = encode(load_model(coded, device="cpu", trust_remote_code=True), TEXTS, 2)
    assert ran.exists()
    assert np.abs(found - encode(load_model(tiny_base, device="cpu"), TEXTS, 2)).max() > 0.1
    assert find_embedding(coded, trust_remote_code=True).name == find_embedding(tiny_base).name


def test_what_is_made_of_a_trusted_base_has_its_code_and_loads_without_the_base(
    coded: Path, tmp_path: Path, ran: Path
) -> None:
    made = resized(coded, tmp_path / "made", trust_remote_code=True)
    expected = encode(load_model(coded, device="cpu", trust_remote_code=True), TEXTS, 2)
    assert code_hashes(made) == code_hashes(coded) != {}
    shutil.rmtree(coded)
    assert np.array_equal(encode(load_model(made, device="cpu", trust_remote_code=True), TEXTS, 2), expected)


def test_a_base_that_transformers_knows_loads_without_its_code_and_what_is_made_names_none(
    plain: Path, tmp_path: Path, ran: Path
) -> None:
    expected = encode(load_model(plain, device="cpu"), TEXTS, 2)
    for name, source in SOURCES.items():
        (plain / name).write_text(source, encoding="utf-8")
    (plain / "1_Pooling" / "more.py").write_text("", encoding="utf-8")
    change_config(plain, auto_map=NAMED | {"AutoModelForMaskedLM": "owner/other--modeling.Masked"})
    settings = read_json(plain / "tokenizer_config.json")
    write_json(
        plain / "tokenizer_config.json", settings | {"auto_map": {"AutoTokenizer": ["words.Slow", "words.Fast"]}}
    )
    check_code(plain, False)
    assert np.array_equal(encode(load_model(plain, device="cpu"), TEXTS, 2), expected)
    made = resized(plain, tmp_path / "made", trust_remote_code=False)
    assert named_code(made) == []
    assert code_hashes(made) == {}
    assert not any("auto_map" in path.read_text(encoding="utf-8") for path in made.rglob("*.json"))
    # As MLflow's loader does, which trusts whatever it finds.
    assert np.array_equal(encode(load_model(made, device="cpu", trust_remote_code=True), TEXTS, 2), expected)
    assert not ran.exists()


def test_code_of_another_repository_is_refused_with_the_way_to_have_it(coded: Path, ran: Path) -> None:
    change_config(coded, auto_map=NAMED | {"AutoModel": "owner/other--modeling_shift.ShiftModel"})
    with pytest.raises(VocabgraftError) as caught:
        load_model(coded, device="cpu", trust_remote_code=True)
    assert "owner/other--modeling_shift.ShiftModel, code of another repository" in str(caught.value)
    assert "put modeling_shift.py of owner/other (and what it imports) beside its config.json" in str(caught.value)
    assert not ran.exists()


def test_named_code_that_is_not_there_is_reported_before_anything_runs(coded: Path, ran: Path) -> None:
    (coded / MODEL).unlink()
    with pytest.raises(VocabgraftError, match=rf"names {NAMED['AutoModel']}, but .* has no {MODEL}; restore the file"):
        load_model(coded, device="cpu", trust_remote_code=True)
    assert not ran.exists()


def test_trusted_code_that_fails_is_a_message_and_no_traceback(coded: Path) -> None:
    (coded / HELPER).write_text("import no_such_package_at_all\n", encoding="utf-8")
    for fails in (
        lambda: load_model(coded, device="cpu", trust_remote_code=True),
        lambda: find_embedding(coded, trust_remote_code=True),
    ):
        with pytest.raises(VocabgraftError, match="no_such_package_at_all"):
            fails()


def test_a_module_class_of_the_folder_is_code_too(plain: Path, tmp_path: Path, ran: Path) -> None:
    before = encode(load_model(plain, device="cpu"), TEXTS, 2)
    with_layer(plain)
    with pytest.raises(VocabgraftError, match=r"type of modules\.json names doubling\.Doubled \(doubling\.py\)"):
        load_model(plain, device="cpu")
    # A folder of the project's own may name importable classes, and this one is a file that lies in it.
    with pytest.raises(VocabgraftError, match=r"base\.trust_remote_code"):
        load_model(plain, device="cpu", own_modules=True)
    assert not ran.exists()
    made = resized(plain, tmp_path / "made", trust_remote_code=True)
    assert own_module_types(made) == []
    after = encode(load_model(made, device="cpu", own_modules=True, trust_remote_code=True), TEXTS, 2)
    assert np.allclose(after, 2 * before, atol=1e-6)
    assert ran.exists()


def test_an_activation_that_would_be_replaced_without_a_word_is_refused(plain: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    model = SentenceTransformer(str(plain), device="cpu")
    model.append(Dense(32, 32, activation_function=torch.nn.GELU()))
    model.save(str(tmp_path / "dense"), create_model_card=False)
    check_code(tmp_path / "dense", False)
    config = tmp_path / "dense" / "3_Dense" / "config.json"
    write_json(config, read_json(config) | {"activation_function": "bending.Bend"})
    with pytest.raises(VocabgraftError, match=r"activation_function of 3_Dense/config\.json names bending\.Bend"):
        load_model(tmp_path / "dense", device="cpu")


def test_a_router_is_looked_into(plain: Path) -> None:
    (plain / "3_Router").mkdir()
    write_json(plain / "3_Router" / "router_config.json", {"types": {"query_0": "doubling.Doubled"}, "structure": {}})
    assert [str(reference) for reference in named_code(plain)] == [
        "type of 3_Router/router_config.json names doubling.Doubled"
    ]


def test_an_edit_of_the_code_is_another_base(coded: Path) -> None:
    params = BaseParams(model="m", trust_remote_code=True)
    before = identify_base(coded, params, "m")
    assert before.code == {name: file_sha256(coded / name) for name in SOURCES}
    (coded / HELPER).write_text(SOURCES[HELPER] + "# edited\n", encoding="utf-8")
    after = identify_base(coded, params, "m")
    assert after != before
    assert after.sha256 == before.sha256
    assert identify_base(coded, BaseParams(model="m"), "m").code is None


def test_files_of_code_are_fetched_where_they_may_run_and_nowhere_else(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def snapshot_download(model: str, **options: Any) -> str:
        asked.append(options["allow_patterns"])
        return str(tiny_base)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    locate_base("owner/name")
    locate_base("owner/name", None, trust_remote_code=True)
    assert ["*.py" in patterns for patterns in asked] == [False, True]


def test_code_is_copied_to_its_places_without_what_is_hidden(tmp_path: Path) -> None:
    for name in ("a.py", "inside/b.py", ".git/c.py", "d.json"):
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_text(name, encoding="utf-8")
    (tmp_path / "to").mkdir()
    copy_code(tmp_path / "from", tmp_path / "to")
    copied = {path.relative_to(tmp_path / "to").as_posix() for path in (tmp_path / "to").rglob("*") if path.is_file()}
    assert copied == {"a.py", "inside/b.py"}


def test_only_the_map_is_taken_out_of_a_configuration(coded: Path) -> None:
    before = json.loads((coded / "config.json").read_text(encoding="utf-8"))
    drop_auto_maps(coded)
    after = read_json(coded / "config.json")
    assert before.pop("auto_map") == NAMED
    assert after == before


def test_a_damaged_list_of_modules_is_reported(plain: Path) -> None:
    write_json(plain / "modules.json", [{"path": ""}])
    with pytest.raises(VocabgraftError, match=r"modules\.json is not a list of modules"):
        load_model(plain, device="cpu")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, "off"),
        ({}, "on; the base has no code of its own"),
        ({"b.py": "2", "a.py": "1"}, f"on: a.py, b.py (SHA-256 {digest_of({'a.py': '1', 'b.py': '2'})})"),
    ],
)
def test_what_ran_is_said_in_a_line(code: dict[str, str] | None, said: str) -> None:
    assert describe_code(code) == said


def test_a_long_list_of_files_is_cut_short() -> None:
    assert " and 3 more (SHA-256 " in describe_code({f"{number:02}.py": "" for number in range(13)})
