"""Editing params.yaml: one line changes, the rest stays, and a fault leaves the file alone."""

import re
from pathlib import Path

import pytest

from flows.engine.edit_params import edit_params
from tests.conftest import ROOT
from vocabgraft.config.params import load_params
from vocabgraft.errors import VocabgraftError


@pytest.fixture
def params_file(tmp_path: Path) -> Path:
    """A copy of the project's params.yaml."""
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    return path


def comments(path: Path) -> list[str]:
    return re.findall(r"(?:^|\s)(#.*)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def changed_lines(before: str, after: str) -> list[tuple[str, str]]:
    pairs = zip(before.splitlines(), after.splitlines(), strict=True)
    return [(old, new) for old, new in pairs if old != new]


def assert_refused(path: Path, assignments: list[str], *says: str) -> None:
    before = path.read_bytes()
    with pytest.raises(VocabgraftError) as raised:
        edit_params(path, assignments)
    for part in says:
        assert part in str(raised.value)
    assert path.read_bytes() == before


def test_one_assignment_changes_one_line_and_keeps_every_comment(params_file: Path) -> None:
    before, noted = params_file.read_text(encoding="utf-8"), comments(params_file)
    edit_params(params_file, ["seed=4711"])
    ((old, new),) = changed_lines(before, params_file.read_text(encoding="utf-8"))
    assert old.startswith("seed: ")
    assert new == "seed: 4711"
    assert noted
    assert comments(params_file) == noted


def test_the_comment_beside_the_value_and_the_other_keys_of_its_line_stay(params_file: Path) -> None:
    noted = comments(params_file)
    before = load_params(params_file).train_adapter
    edit_params(params_file, ["train_adapter.scale=30.0", "train_adapter.lora.r=3"])
    after = load_params(params_file).train_adapter
    assert comments(params_file) == noted
    assert (after.scale, after.lora.r) == (30.0, 3)
    assert after.lora == before.lora.model_copy(update={"r": 3})


def test_the_difference_is_returned_without_unchanged_lines(params_file: Path) -> None:
    shown = edit_params(params_file, ["seed=4711"]).splitlines()
    assert [line for line in shown if line[0] == "+"] == [f"+++ {params_file}", "+seed: 4711"]
    assert [line for line in shown if line[0] == "-"] == [f"--- {params_file}", "-seed: 17"]
    assert not [line for line in shown if line[0] == " "]


def test_a_value_that_is_there_already_gives_no_difference_and_no_write(params_file: Path) -> None:
    before = params_file.read_bytes()
    seed = load_params(params_file).seed
    assert edit_params(params_file, [f"seed={seed}"]) == ""
    assert params_file.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "seen"), [("5e-4", 5e-4), ("1E-3", 1e-3), ("0.25", 0.25), ("5.0e-4", 5e-4), ("1.", 1.0)]
)
def test_a_number_that_was_set_is_the_number_that_the_stages_read(text: str, seen: float, params_file: Path) -> None:
    edit_params(params_file, [f"train_adapter.learning_rate={text}"])
    assert load_params(params_file).train_adapter.learning_rate == seen


@pytest.mark.parametrize("name", ["on", "yes", "off"])
def test_a_word_that_older_yaml_takes_for_a_truth_value_stays_text(name: str, params_file: Path) -> None:
    edit_params(params_file, [f"register_model.name={name}"])
    assert load_params(params_file).register_model.name == name


def test_an_entry_of_a_list_is_set_by_its_number(params_file: Path) -> None:
    edit_params(params_file, ["validate_data.datasets.1.held_out.test=0.3", "validate_data.contexts.0=others.txt"])
    loaded = load_params(params_file).validate_data
    assert loaded.datasets[1].held_out.test == 0.3
    assert loaded.contexts == ["others.txt"]


def test_null_is_set_and_written_as_null(params_file: Path) -> None:
    edit_params(params_file, ["base.sha256=null"])
    assert load_params(params_file).base.sha256 is None
    assert re.search(r"^  sha256: null$", params_file.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_a_key_that_params_yaml_leaves_to_its_default_can_be_set(params_file: Path) -> None:
    text = re.sub(r"\n  max_text_characters: .*", "", params_file.read_text(encoding="utf-8"))
    params_file.write_text(text, encoding="utf-8")
    edit_params(params_file, ["validate_data.max_text_characters=9"])
    assert load_params(params_file).validate_data.max_text_characters == 9


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("train_adapter.epoch=1", ("unknown key 'train_adapter.epoch' (value 1)", "allowed here: method, epochs")),
        ("merge_adapter.x=1", ("unknown key 'merge_adapter.x'", "allowed here: name, licence, contexts_per_token")),
        ("sead=1", ("unknown key 'sead'", "allowed here: seed, base")),
        (
            "train.epochs=1",
            ("--set train.epochs: there is no 'train'", "allowed: seed, base, failure_hook"),
        ),
        ("seed.x=1", ("--set seed.x: there is no 'x'", "17 cannot be set in part; set it as a whole")),
        ("base.revision.x.y=1", ("there is no 'x'", "None cannot be set in part; set it as a whole")),
        ("validate_data.datasets.9.name=a", ("there is no '9'; allowed: 0 to 1",)),
        ("validate_data.datasets.9=1", ("there is no '9'; allowed: 0 to 1",)),
        ("validate_data.datasets.x=1", ("there is no 'x'; allowed: 0 to 1",)),
        ("train_adapter.phases.0=1", ("there is no '0'", "[] cannot be set in part; set it as a whole")),
    ],
)
def test_an_unknown_key_is_refused_and_the_file_untouched(
    assignment: str, says: tuple[str, ...], params_file: Path
) -> None:
    assert_refused(params_file, [assignment], *says)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("train_adapter.epochs=many", ("key 'train_adapter.epochs' is 'many'; it should be a valid integer",)),
        ("train_adapter.epochs=1.5", ("key 'train_adapter.epochs' is 1.5",)),
        ("seed=true", ("key 'seed' is True; it should be a valid integer",)),
        ("seed=", ("key 'seed' is None",)),
        ("train_adapter.method=prompt", ("is 'prompt'; it should be 'tokens', ",)),
        ("validate_data.max_rejected_fraction=2", ("is 2; it should be less than or equal to 1",)),
        ("base.prompts.query=query: ", ("key 'base.prompts.query' is {'query': None}; it should be a valid string",)),
    ],
)
def test_a_wrong_value_is_refused_and_the_file_untouched(
    assignment: str, says: tuple[str, ...], params_file: Path
) -> None:
    assert_refused(params_file, [assignment], *says)


@pytest.mark.parametrize("assignment", ["seed", "=3", ""])
def test_an_assignment_that_is_none_is_refused(assignment: str, params_file: Path) -> None:
    assert_refused(params_file, [assignment], f"--set takes SECTION.KEY=VALUE, not {assignment!r}")


def test_a_value_that_is_no_yaml_is_refused(params_file: Path) -> None:
    assert_refused(params_file, ["seed=["], "--set seed: '[' is not YAML")


def test_a_good_assignment_beside_a_wrong_one_is_not_written(params_file: Path) -> None:
    assert_refused(params_file, ["seed=3", "train_adapter.epoch=1"], "unknown key 'train_adapter.epoch'")


def test_a_value_that_the_file_had_wrong_can_be_mended(params_file: Path) -> None:
    params_file.write_text(params_file.read_text(encoding="utf-8").replace("seed: 17", "seed: many"), encoding="utf-8")
    edit_params(params_file, ["seed=5"])
    assert load_params(params_file).seed == 5


def test_a_missing_file_and_one_that_is_no_yaml_are_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(VocabgraftError, match=r"params\.yaml is missing; run from the project's root"):
        edit_params(path, ["seed=1"])
    path.write_text("seed: [", encoding="utf-8")
    assert_refused(path, ["seed=1"], "params.yaml is not YAML; correct it first")
