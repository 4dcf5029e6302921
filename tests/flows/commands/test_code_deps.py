"""The code deps of dvc.yaml are written from the import graph, and nothing else in the file changes."""

from pathlib import Path

from flows.commands.code_deps import first_party_files, rewrite, with_code_deps
from tests.conftest import ROOT, write_lines

STAGES = """\
# A comment at the top.
vars: [settings.yaml]
stages:
  first:
    cmd: python -m tasks.first   # in its words
    deps:
      # raw data
      - data/raw   # with a comment
      - tasks/gone.py
      - vocabgraft/deep/b.py
    outs:
      - data/first

  second:
    deps:
      - tasks/second.py
      - data/first
    cmd: python -m tasks.second
  other:
    cmd: python other.py
    deps:
      - other.py
metrics:
  - data/second/metrics.json
"""


def project(root: Path) -> Path:
    write_lines(root / "tasks/first.py", ["from vocabgraft.deep.b import name"])
    write_lines(root / "tasks/second.py", ["import tasks.support"])
    write_lines(root / "tasks/support.py", ["import json"])
    write_lines(root / "vocabgraft/deep/b.py", ["def f():", "    from vocabgraft import a"])
    write_lines(root / "vocabgraft/a.py", ["from vocabgraft.deep import b"])
    (root / "dvc.yaml").write_text(STAGES, encoding="utf-8")
    return root


def test_imports_are_followed_through_functions_packages_and_relative_names(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "tasks/a.py", ["import json", "def f():", "    from vocabgraft import b", "    import flows.x"]
    )
    write_lines(tmp_path / "vocabgraft/b.py", ["from .c import name", "from . import d", "import vocabgraft.room.e"])
    write_lines(tmp_path / "vocabgraft/room/e.py", ["from ..f import name", "from . import g", "from .h import name"])
    for name in ("c", "d", "f", "unused", "room/g", "room/h"):
        write_lines(tmp_path / f"vocabgraft/{name}.py", ["import vocabgraft.b"])
    write_lines(tmp_path / "flows/x.py", [])
    needed = {"tasks/a.py", *(f"vocabgraft/{name}.py" for name in ("b", "c", "d", "f", "room/e", "room/g", "room/h"))}
    assert first_party_files(tmp_path, "tasks/a.py") == needed


def test_code_deps_stand_below_the_data_and_every_other_byte_stays(tmp_path: Path) -> None:
    expected = STAGES.replace(
        "      - tasks/gone.py\n      - vocabgraft/deep/b.py\n",
        "      - tasks/first.py\n      - vocabgraft/a.py\n      - vocabgraft/deep/b.py\n",
    ).replace(
        "      - tasks/second.py\n      - data/first\n",
        "      - data/first\n      - tasks/second.py\n      - tasks/support.py\n",
    )
    assert with_code_deps(STAGES, project(tmp_path)) == expected
    assert with_code_deps(expected, tmp_path) == expected


def test_the_file_is_written_only_where_something_changes(tmp_path: Path) -> None:
    root = project(tmp_path)
    assert rewrite(root)
    before = (root / "dvc.yaml").stat().st_mtime_ns
    assert not rewrite(root)
    assert (root / "dvc.yaml").stat().st_mtime_ns == before


def test_a_file_that_ends_within_deps_is_written_whole(tmp_path: Path) -> None:
    project(tmp_path)
    text = "stages:\n  first:\n    deps:\n      - data/raw"
    added = ["tasks/first.py", "vocabgraft/a.py", "vocabgraft/deep/b.py"]
    assert with_code_deps(text, tmp_path) == text + "".join(f"\n      - {file}" for file in added) + "\n"


def test_a_dep_that_the_shipped_dvc_yaml_lacks_comes_back() -> None:
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert with_code_deps(text.replace("      - vocabgraft/errors.py\n", "", 1), ROOT) == text
