import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import chdir
from pathlib import Path

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.engine.dag import FIRST_RUN, Planned, Stage, changes, plan, read_dag
from flows.engine.edit_params import edit_params
from flows.engine.lock_file import restore_lock_order
from tests.conftest import ROOT
from tests.flows.projects import Trivial, journal, run_dvc, write_project
from vocabgraft.errors import VocabgraftError

# Written in an order in which they cannot run, with what YAML has to fold, quote or escape.
CROSSING = {
    "join": Trivial(["right", "left"], ["evaluate_model"]),
    "left": Trivial(["first"], ["train_adapter", "base.revision"], before=f"true {' '.join(['a long command'] * 20)}"),
    "alone": Trivial(params=["validate_data"], before="true 'it is: \"quoted\"' # not a comment\ntrue"),
    "right": Trivial(["first", "second"], ["seed"]),
    "second": Trivial(["first"], ["base.model"]),
    "first": Trivial(params=["check_consistency.merged_tolerance"], before="true 'ümläut' 名前"),
}
UPSTREAM = {name: sorted(stage.reads) for name, stage in CROSSING.items()}


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project after `dvc repro`, as the working folder; no test may change it."""
    root = write_project(tmp_path_factory.mktemp("dag") / "project", CROSSING)
    run_dvc(root, "repro")
    with chdir(root):
        yield root


@pytest.fixture(scope="module")
def order(reproduced: Path) -> list[str]:
    """The names of its stages, in DVC's order."""
    return names(read_dag(reproduced))


def names(stages: Sequence[Stage]) -> list[str]:
    """The stages' names."""
    return [stage.name for stage in stages]


def names_to_run(planned: Sequence[Planned]) -> set[str]:
    """The names of the stages that have a reason to run."""
    return {entry.stage.name for entry in planned if entry.runs}


def test_the_order_is_that_in_which_dvc_runs_the_stages(reproduced: Path) -> None:
    order = names(read_dag(reproduced))
    assert order == journal(reproduced)
    assert order != list(CROSSING), "otherwise the order in the file would do"


def test_upstream_stages_are_those_whose_outputs_a_stage_reads(reproduced: Path) -> None:
    stages = read_dag(reproduced)
    assert {stage.name: list(stage.upstream) for stage in stages} == UPSTREAM
    assert {stage.name: stage.outs for stage in stages} == {name: (Path(f"{name}.txt"),) for name in CROSSING}


def test_the_chain_of_this_project_is_the_one_in_its_dvc_yaml(tmp_path: Path) -> None:
    write_project(tmp_path / "project", {})
    (tmp_path / "project" / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    with chdir(tmp_path / "project"):
        stages = {stage.name: stage.upstream for stage in read_dag(Path())}
    assert next(iter(stages)) == "validate_data"
    assert stages["validate_data"] == ()
    assert stages["merge_adapter"] == ("extend_tokenizer", "resize_base", "train_adapter", "validate_data")
    assert "merge_adapter" in stages["register_model"]
    assert list(stages)[-1] == "register_model"


def test_a_folder_that_is_no_project_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(VocabgraftError, match="run from the project's root"):
        read_dag(tmp_path)


def test_an_unchanged_project_has_no_reasons(reproduced: Path) -> None:
    assert changes(reproduced) == {}
    assert names_to_run(plan(read_dag(reproduced), {})) == set()


def test_a_changed_parameter_is_a_reason_for_its_stage_and_for_those_behind_it(
    tmp_path: Path, reproduced: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = as_reproduced(tmp_path, reproduced, CROSSING)
    monkeypatch.chdir(root)
    edit_params(root / "params.yaml", ["base.model=other"])
    planned = {entry.stage.name: entry.reasons for entry in plan(read_dag(root), changes(root))}
    assert {name: reasons for name, reasons in planned.items() if reasons} == {
        "second": ("param base.model: modified",),
        "right": ("second runs before it",),
        "join": ("right runs before it",),
    }


def test_a_stage_names_the_stages_before_it_in_one_line_and_none_on_its_first_run() -> None:
    stage = Stage("join", (), ())
    assert Planned(stage, (), ("left", "right")).reasons == ("left, right run before it",)
    assert Planned(stage, (FIRST_RUN,), ("left", "right")).reasons == (FIRST_RUN,)
    assert Planned(stage).reasons == ()


def test_code_newer_than_dvc_lock_is_no_reason_on_a_first_run(
    tmp_path: Path, reproduced: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_project(tmp_path / "clone", CROSSING)
    lock = (reproduced / "dvc.lock").read_text(encoding="utf-8")
    assert "raw.txt" in lock
    (root / "dvc.lock").write_text(lock.replace("raw.txt", "raw.py"), encoding="utf-8")
    described = (root / "dvc.yaml").read_text(encoding="utf-8")
    (root / "dvc.yaml").write_text(described.replace("raw.txt", "raw.py"), encoding="utf-8")
    (root / "raw.txt").unlink()
    (root / "raw.py").write_text("edited", encoding="utf-8")
    monkeypatch.chdir(root)
    assert changes(root)["first"] == [FIRST_RUN]


def test_in_a_fresh_clone_every_stage_has_its_first_run_whatever_is_missing(
    tmp_path: Path, reproduced: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_project(tmp_path / "clone", CROSSING)
    shutil.copy(reproduced / "dvc.lock", root)
    monkeypatch.chdir(root)
    assert changes(root) == {name: [FIRST_RUN] for name in CROSSING}
    (root / "raw.txt").unlink()
    edit_params(root / "params.yaml", ["base.model=other"])
    found = changes(root)
    assert found["first"] == [FIRST_RUN, "dep raw.txt: deleted"], "nobody makes it, so a person has to know"
    assert found["second"] == [FIRST_RUN, "param base.model: modified"]
    assert found["join"] == [FIRST_RUN]


def test_a_first_run_that_was_broken_off_goes_on_with_first_runs(
    tmp_path: Path, reproduced: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_project(tmp_path / "clone", CROSSING)
    shutil.copy(reproduced / "dvc.lock", root)
    run_dvc(root, "repro", "second")
    monkeypatch.chdir(root)
    assert changes(root) == {name: [FIRST_RUN] for name in ("left", "right", "join", "alone")}


def test_a_changed_file_a_lost_output_and_a_changed_command_are_reasons(
    tmp_path: Path, reproduced: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = CROSSING | {"join": Trivial(CROSSING["join"].reads, CROSSING["join"].params, before="true other")}
    root = as_reproduced(tmp_path, reproduced, changed)
    monkeypatch.chdir(root)
    (root / "raw.txt").write_text("other\n", encoding="utf-8")
    (root / "second.txt").unlink()
    assert changes(root) == {
        "first": ["dep raw.txt: modified"],
        "alone": ["dep raw.txt: modified"],
        "second": ["output second.txt: deleted"],
        "right": ["dep second.txt: deleted"],
        "join": ["changed command"],
    }


def as_reproduced(folder: Path, reproduced: Path, stages: dict[str, Trivial]) -> Path:
    """A project with other stages, but the outputs and the dvc.lock of the one that was reproduced."""
    root = write_project(folder / "project", stages)
    for name in ("dvc.lock", *(f"{stage}.txt" for stage in stages)):
        (root / name).write_bytes((reproduced / name).read_bytes())
    shutil.copytree(reproduced / ".dvc" / "cache", root / ".dvc" / "cache")
    return root


def test_a_plan_until_a_stage_holds_it_and_what_it_needs(reproduced: Path) -> None:
    stages = read_dag(reproduced)
    planned = plan(stages, {}, until="right")
    assert [entry.stage.name for entry in planned] == [
        name for name in names(stages) if name in ("first", "second", "right")
    ]


def test_an_unknown_stage_is_named_with_the_allowed_ones(reproduced: Path) -> None:
    stages = read_dag(reproduced)
    with pytest.raises(VocabgraftError, match="no stage 'nowhere'; allowed: " + ", ".join(names(stages))):
        plan(stages, {}, until="nowhere")


def test_a_forced_stage_says_so_first(reproduced: Path) -> None:
    planned = plan(read_dag(reproduced), {"second": ["dep x: modified"]}, forced=frozenset({"second"}))
    reasons = {entry.stage.name: entry.reasons for entry in planned}
    assert reasons["second"] == ("forced", "dep x: modified")
    assert reasons["first"] == ()


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    """Random DAGs of up to eight stages: the upstream stages of each, written in any order."""
    size = draw(st.integers(1, 8))
    labels = draw(st.permutations([f"s{number}" for number in range(size)]))
    edges = {
        label: sorted(draw(st.sets(st.sampled_from(labels[:place])))) if place else []
        for place, label in enumerate(labels)
    }
    return {label: edges[label] for label in draw(st.permutations(labels))}


def ordered(graph: dict[str, list[str]]) -> list[Stage]:
    """The stages of a graph, each behind those that it needs."""
    digraph = nx.DiGraph([(above, name) for name, upstream in graph.items() for above in upstream])
    digraph.add_nodes_from(graph)
    return [Stage(name, tuple(graph[name]), ()) for name in nx.topological_sort(digraph)]


def ancestors(graph: dict[str, list[str]], name: str) -> set[str]:
    """Every stage that a stage needs, near or far."""
    return set(graph[name]).union(*(ancestors(graph, upstream) for upstream in graph[name]))


@given(graphs(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_stage_runs_exactly_if_it_or_one_before_it_changed(graph: dict[str, list[str]], data: st.DataObject) -> None:
    some = st.sets(st.sampled_from(sorted(graph)))
    changed, forced = data.draw(some), data.draw(some)
    planned = plan(ordered(graph), {name: ["changed"] for name in changed}, forced=frozenset(forced))
    moved = changed | forced
    assert names_to_run(planned) == {name for name in graph if name in moved or moved & ancestors(graph, name)}
    assert [entry.stage for entry in planned] == ordered(graph)


@given(graphs(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_plan_until_any_stage_is_that_stage_and_its_ancestors(
    graph: dict[str, list[str]], data: st.DataObject
) -> None:
    until = data.draw(st.sampled_from(sorted(graph)))
    planned = plan(ordered(graph), {}, until=until)
    wanted = {until} | ancestors(graph, until)
    assert [entry.stage.name for entry in planned] == [stage.name for stage in ordered(graph) if stage.name in wanted]


@given(graphs())
@settings(max_examples=6, deadline=None)
def test_any_dag_is_read_with_every_stage_behind_what_it_needs(
    tmp_path_factory: pytest.TempPathFactory, graph: dict[str, list[str]]
) -> None:
    root = write_project(
        tmp_path_factory.mktemp("any") / "project", {name: Trivial(reads) for name, reads in graph.items()}
    )
    with chdir(root):
        stages = read_dag(root)
    assert {stage.name: list(stage.upstream) for stage in stages} == graph
    place = {name: position for position, name in enumerate(names(stages))}
    assert all(place[above] < place[name] for name, upstream in graph.items() for above in upstream)


def stages_of_lock(text: str) -> tuple[str, dict[str, str]]:
    """What is above the stages in a dvc.lock, and the text of each stage."""
    head, *rest = re.split(r"(?m)^(?=  \w+:$)", text)
    return head, {part.split(":", 1)[0].strip(): part for part in rest}


@given(shuffled=st.permutations(list(CROSSING)))
@settings(max_examples=20, deadline=None)
def test_a_shuffled_lock_file_is_restored_byte_for_byte(
    reproduced: Path, order: list[str], tmp_path_factory: pytest.TempPathFactory, shuffled: list[str]
) -> None:
    original = (reproduced / "dvc.lock").read_text(encoding="utf-8")
    head, parts = stages_of_lock(original)
    assert set(parts) == set(CROSSING)
    lock = tmp_path_factory.mktemp("lock") / "dvc.lock"
    lock.write_text(head + "".join(parts[name] for name in shuffled), encoding="utf-8")
    restore_lock_order(lock, order)
    assert lock.read_bytes() == original.encode()


def test_editing_params_first_changes_nothing_about_the_lock_file(
    reproduced: Path, order: list[str], tmp_path: Path
) -> None:
    shutil.copy(reproduced / "params.yaml", tmp_path)
    edit_params(tmp_path / "params.yaml", ["seed=18"])
    original = (reproduced / "dvc.lock").read_text(encoding="utf-8")
    assert "base.revision:\n" in original, "DVC writes null as nothing"
    head, parts = stages_of_lock(original)
    lock = tmp_path / "dvc.lock"
    lock.write_text(head + "".join(reversed(parts.values())), encoding="utf-8")
    restore_lock_order(lock, order)
    assert lock.read_text(encoding="utf-8") == original


def test_a_lock_file_in_order_is_not_written(reproduced: Path, tmp_path: Path) -> None:
    lock = tmp_path / "dvc.lock"
    # What DVC would lay out in another way shows whether the file was written.
    content = (reproduced / "dvc.lock").read_bytes() + b"\n# kept\n\n"
    lock.write_bytes(content)
    lock.chmod(0o444)
    before = lock.stat().st_mtime_ns
    restore_lock_order(lock, names(read_dag(reproduced)))
    assert (lock.read_bytes(), lock.stat().st_mtime_ns) == (content, before)


def test_stages_that_are_not_in_the_order_stay_behind_the_others(reproduced: Path, tmp_path: Path) -> None:
    lock = tmp_path / "dvc.lock"
    lock.write_bytes((reproduced / "dvc.lock").read_bytes())
    kept = [name for name in names(read_dag(reproduced)) if name not in ("join", "second")]
    restore_lock_order(lock, ["join", "second"])
    assert list(stages_of_lock(lock.read_text(encoding="utf-8"))[1]) == ["join", "second", *kept]


def test_no_lock_file_is_made(tmp_path: Path) -> None:
    restore_lock_order(tmp_path / "dvc.lock", ["one"])
    assert not (tmp_path / "dvc.lock").exists()
