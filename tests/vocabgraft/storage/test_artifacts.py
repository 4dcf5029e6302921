"""Artifact folders: whole or not there, and the same digest for the same content."""

import json
import os
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import (
    content_digest,
    digest_of,
    file_sha256,
    hash_files,
    new_folder,
    read_json,
    require_artifact,
    write_json,
)

FILES = st.dictionaries(st.text(string.ascii_lowercase, min_size=1, max_size=3), st.binary(max_size=4), max_size=4)


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files in the order given, into a new folder."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def partials(folder: Path) -> list[str]:
    """What is left of work in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".partial"))


@given(left=FILES, right=FILES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_digest_is_equal_exactly_for_equal_names_and_contents(
    tmp_path_factory: pytest.TempPathFactory, left: dict[str, bytes], right: dict[str, bytes]
) -> None:
    root = tmp_path_factory.mktemp("digest")
    digests = [content_digest(fill(root / side, files)) for side, files in (("left", left), ("right", right))]
    assert (digests[0] == digests[1]) == (left == right)
    reordered = fill(root / "reordered", dict(reversed(left.items())))
    assert content_digest(reordered) == digests[0]


def test_the_digest_tells_a_file_from_its_content_moved_to_another_name(tmp_path: Path) -> None:
    first, second = fill(tmp_path / "a", {"x": b"1", "y": b"2"}), fill(tmp_path / "b", {"x": b"2", "y": b"1"})
    assert content_digest(first) != content_digest(second)


def test_only_the_folders_own_manifest_is_left_out_of_its_digest(tmp_path: Path) -> None:
    folder = fill(tmp_path / "a", {"x": b"1", "manifest.json": b"{}"})
    fill(folder / "below", {"manifest.json": b"{}"})
    assert sorted(hash_files(folder)) == ["below/manifest.json", "x"]


@given(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=4))
def test_the_digest_of_a_mapping_does_not_hang_on_its_order(value: dict[str, int | str]) -> None:
    assert digest_of(dict(reversed(value.items()))) == digest_of(value)


def test_a_finished_folder_has_a_manifest_of_its_files(tmp_path: Path) -> None:
    with new_folder(tmp_path / "made") as work:
        (work / "below").mkdir()
        (work / "below" / "file").write_bytes(b"content")
    manifest = read_json(tmp_path / "made" / "manifest.json")
    assert manifest["files"] == {"below/file": file_sha256(tmp_path / "made" / "below" / "file")}
    assert manifest["digest"] == content_digest(tmp_path / "made")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_half_written_folder_is_never_left(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "made") as work:
        (work / "half").write_text("half", encoding="utf-8")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_folder_that_was_there(tmp_path: Path) -> None:
    with new_folder(tmp_path / "made") as work:
        (work / "file").write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "made") as work:
        (work / "file").write_text("new", encoding="utf-8")
        raise RuntimeError
    assert (tmp_path / "made" / "file").read_text(encoding="utf-8") == "old"
    assert require_artifact(tmp_path / "made")


def test_the_destination_is_not_there_before_the_block_ends(tmp_path: Path) -> None:
    with new_folder(tmp_path / "made") as work:
        (work / "file").write_text("new", encoding="utf-8")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "file").is_file()


def test_a_new_folder_replaces_the_old_one_and_all_its_files(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with new_folder(tmp_path / "made") as work:
            (work / name).touch()
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["manifest.json", "new"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    fill(tmp_path / ".made.abcdefgh.partial", {"half": b""})
    fill(tmp_path / ".other.abcdefgh.partial", {"half": b""})
    with new_folder(tmp_path / "made"):
        pass
    assert partials(tmp_path) == [".other.abcdefgh.partial"]


def test_modes_follow_the_umask_and_not_that_of_temporary_folders(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with new_folder(tmp_path / "made") as work:
            (work / "below").mkdir(mode=0o700)
            (work / "file").touch(mode=0o600)
    finally:
        os.umask(mask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "made").iterdir()}
    assert modes == {"below": 0o750, "file": 0o640, "manifest.json": 0o640}
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o750


def test_equal_values_give_equal_bytes_whatever_their_order(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": "ü"})
    write_json(tmp_path / "b", {"a": "ü", "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert "ü" in (tmp_path / "a").read_text(encoding="utf-8")
    assert read_json(tmp_path / "a") == {"a": "ü", "b": 1}


@pytest.mark.parametrize("content", [b"{", b"", b'"\xff"'])
def test_damaged_json_is_reported_with_its_remedy(in_folder: Path, content: bytes) -> None:
    path = Path("data/evaluate_model/metrics.json")
    fill(path.parent, {path.name: content})
    with pytest.raises(VocabgraftError, match=r"metrics.json is damaged .*dvc checkout data/evaluate_model"):
        read_json(path)


def test_a_missing_artifact_names_the_stage_that_makes_it(in_folder: Path) -> None:
    with pytest.raises(VocabgraftError, match=r"data/resize_base/x.json is missing; `dvc repro resize_base` makes it"):
        read_json(Path("data/resize_base/x.json"))
    with pytest.raises(VocabgraftError, match="dvc repro resize_base"):
        require_artifact(Path("data/resize_base"))
    with pytest.raises(VocabgraftError, match=r"data/raw/terms.csv is missing; check the name"):
        require_artifact(Path("data/raw/terms.csv"))


def test_a_folder_without_a_manifest_is_not_taken_for_an_artifact(tmp_path: Path) -> None:
    folder = fill(tmp_path / "made", {"file": b""})
    with pytest.raises(VocabgraftError, match=r"has no manifest.json, so it is incomplete"):
        require_artifact(folder)
    with pytest.raises(VocabgraftError, match=r"incomplete"):
        require_artifact(folder / "file")
    (folder / "manifest.json").write_text(json.dumps({}), encoding="utf-8")
    assert require_artifact(folder / "file") == folder / "file"
