"""dvc.yaml, params.yaml and the code agree, and a disagreement is seen: each check is tried on a broken structure."""

import ast
import copy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from flows.commands.code_deps import FIRST_PARTY, first_party_files, with_code_deps
from vocabgraft.config.params import Params

from .conftest import ROOT

Stages = dict[str, Any]


def read_yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def code_deps(stage: Any) -> set[str]:
    return {dep for dep in stage["deps"] if dep.endswith(".py")}


def data_deps(stage: Any) -> set[str]:
    return set(stage["deps"]) - code_deps(stage)


def out_paths(stage: Any) -> list[str]:
    return [next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"]]


def within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def stage_function(root: Path, name: str) -> ast.FunctionDef:
    tree = ast.parse((root / "tasks" / f"{name}.py").read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)


def parameters(function: ast.FunctionDef, paths: bool) -> list[str]:
    """The function's parameters that are paths, or those that are not."""
    return [
        argument.arg
        for argument in [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        if (isinstance(argument.annotation, ast.Name) and argument.annotation.id == "Path") is paths
    ]


def check_modules(stages: Stages, root: Path) -> list[str]:
    """Every public module of tasks/ is a stage, and the other way round."""
    modules = {path.stem for path in (root / "tasks").glob("[!_]*.py")}
    return [f"{name}: a module without a stage" for name in sorted(modules - set(stages))] + [
        f"{name}: a stage without a module" for name in sorted(set(stages) - modules)
    ]


def check_section(section: Any, model: type[BaseModel], place: str) -> list[str]:
    """A mapping has exactly the fields of its class, and so have the mappings in it."""
    problems = [f"{place}.{name}: no such field" for name in sorted(set(section) - set(model.model_fields))]
    problems += [f"{place}.{name}: not in params.yaml" for name in sorted(set(model.model_fields) - set(section))]
    for name, field in model.model_fields.items():
        if name in section and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            problems += check_section(section[name], field.annotation, f"{place}.{name}")
    return problems


def check_params(params: Any, stages: Stages) -> list[str]:
    """params.yaml holds the fields of its classes, and one section a stage beside those that no stage owns."""
    sections = set(Params.model_fields) - {"seed", "base", "failure_hook"}
    return check_section(params, Params, "params") + [
        f"{name}: a section without a stage or a stage without a section" for name in sorted(sections ^ set(stages))
    ]


def check_read_params(stages: Stages, root: Path) -> list[str]:
    """A stage depends on the sections that its function takes, no more and no less."""
    problems = []
    for name, stage in stages.items():
        taken = {name if taken == "params" else taken for taken in parameters(stage_function(root, name), paths=False)}
        listed = {key.split(".")[0] for key in stage.get("params", [])}
        problems += [f"{name}: params {key} listed or taken, not both" for key in sorted(taken ^ listed)]
    return problems


def check_deps_exist(stages: Stages, root: Path) -> list[str]:
    """A dep is raw data, the data of the package, another stage's output or a file of code."""
    problems = []
    for name, stage in stages.items():
        outs = [out for other, entry in stages.items() if other != name for out in out_paths(entry)]
        places = ["data/raw", "vocabgraft/data", *outs]
        problems += [
            f"{name}: {dep} is no stage's output"
            for dep in sorted(data_deps(stage))
            if not any(within(dep, place) for place in places)
        ]
        problems += [f"{name}: {dep} does not exist" for dep in sorted(code_deps(stage)) if not (root / dep).is_file()]
    return problems


def check_code_deps(stages: Stages, root: Path) -> list[str]:
    """A stage's code deps are its module and what that imports, directly or not."""
    problems = []
    for name, stage in stages.items():
        needed, listed = first_party_files(root, f"tasks/{name}.py"), code_deps(stage)
        problems += [f"{name}: {dep} is imported but no dep" for dep in sorted(needed - listed)]
        problems += [f"{name}: {dep} is a dep but not imported" for dep in sorted(listed - needed)]
    return problems


def check_outs(stages: Stages) -> list[str]:
    """A stage writes data/<stage> and nothing else."""
    return [
        f"{name}: outs are {out_paths(stage)}" for name, stage in stages.items() if out_paths(stage) != [f"data/{name}"]
    ]


def check_persistence(stages: Stages) -> list[str]:
    """Only the registration's output is kept, so that DVC restores every other from its run cache and not that one."""
    kept = [name for name, stage in stages.items() for out in stage["outs"] if isinstance(out, dict) if persists(out)]
    return [] if kept == ["register_model"] else [f"persist: true at {kept}"]


def persists(out: dict[str, Any]) -> bool:
    return any(options.get("persist") is True for options in out.values())


def check_commands(stages: Stages, root: Path) -> list[str]:
    """A stage's command runs its module with exactly the path options of its function."""
    problems = []
    for name, stage in stages.items():
        command = shlex.split(stage["cmd"])
        options = [f"--{path.replace('_', '-')}" for path in parameters(stage_function(root, name), paths=True)]
        if command[:3] != ["python", "-m", f"tasks.{name}"]:
            problems.append(f"{name}: runs {' '.join(command[:3])}")
        if sorted(command[3::2]) != sorted(options) or len(command) != 3 + 2 * len(options):
            problems.append(f"{name}: options {command[3::2]}, not {options}")
    return problems


def check_command_paths(stages: Stages) -> list[str]:
    """Data that a command names is a dep, holds deps or lies in one; --out is the output."""
    problems = []
    for name, stage in stages.items():
        command = shlex.split(stage["cmd"])[3:]
        for option, path in zip(command[::2], command[1::2], strict=False):
            known = out_paths(stage) if option == "--out" else data_deps(stage)
            exact = option == "--out"
            if path.startswith("data/") and not any(path == dep if exact else touches(path, dep) for dep in known):
                problems.append(f"{name}: {option} {path} is not declared")
    return problems


def touches(path: str, dep: str) -> bool:
    return within(path, dep) or within(dep, path)


def check_single_definition(stages: Stages, root: Path) -> list[str]:
    """Only dvc.yaml says where a stage's data lies."""
    files = [path for folder in ("flows", *FIRST_PARTY) for path in (root / folder).rglob("*.py")]
    files += [path for pattern in ("*.yaml", "*.yml") for path in root.glob(pattern) if path.name != "dvc.yaml"]
    return [
        f"{path.relative_to(root)} names data/{name}"
        for path in sorted(files)
        for name in stages
        if f"data/{name}" in path.read_text(encoding="utf-8")
    ]


@pytest.fixture
def stages() -> Stages:
    loaded: Stages = read_yaml("dvc.yaml")["stages"]
    return loaded


def test_every_public_module_of_tasks_is_a_stage_and_the_other_way_round(stages: Stages) -> None:
    assert check_modules(stages, ROOT) == []


def test_params_yaml_has_exactly_the_fields_of_its_classes(stages: Stages) -> None:
    assert check_params(read_yaml("params.yaml"), stages) == []


def test_every_stage_depends_on_exactly_the_sections_it_takes(stages: Stages) -> None:
    assert check_read_params(stages, ROOT) == []


def test_every_dep_is_raw_data_an_output_or_code_that_exists(stages: Stages) -> None:
    assert check_deps_exist(stages, ROOT) == []


def test_code_deps_are_exactly_what_a_stage_imports(stages: Stages) -> None:
    assert check_code_deps(stages, ROOT) == []


def test_make_deps_has_nothing_to_do() -> None:
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert with_code_deps(text, ROOT) == text


def test_every_stage_writes_its_own_folder_alone(stages: Stages) -> None:
    assert check_outs(stages) == []


def test_the_registration_alone_is_never_restored_from_the_run_cache(stages: Stages) -> None:
    assert check_persistence(stages) == []


def test_every_command_has_exactly_the_path_options_of_its_function(stages: Stages) -> None:
    assert check_commands(stages, ROOT) == []


def test_every_path_of_a_command_is_declared(stages: Stages) -> None:
    assert check_command_paths(stages) == []


def test_only_dvc_yaml_names_the_data_of_a_stage(stages: Stages) -> None:
    assert check_single_definition(stages, ROOT) == []


def drop(stage: str) -> Callable[[Stages], object]:
    return lambda stages: stages.pop(stage)


def rename(stage: str, new: str) -> Callable[[Stages], object]:
    return lambda stages: stages.update({new: stages.pop(stage)})


def put(stage: str, key: str, value: Any) -> Callable[[Stages], object]:
    return lambda stages: stages[stage].update({key: value})


def add_dep(stage: str, dep: str) -> Callable[[Stages], object]:
    return lambda stages: stages[stage]["deps"].append(dep)


def remove_dep(stage: str, dep: str) -> Callable[[Stages], object]:
    return lambda stages: stages[stage]["deps"].remove(dep)


def in_command(stage: str, old: str, new: str) -> Callable[[Stages], object]:
    return lambda stages: stages[stage].update(cmd=stages[stage]["cmd"].replace(old, new))


def check_params_of_project(stages: Stages) -> list[str]:
    return check_params(read_yaml("params.yaml"), stages)


def of_project(check: Callable[[Stages, Path], list[str]]) -> Callable[[Stages], list[str]]:
    return lambda stages: check(stages, ROOT)


OUTSIDE = "data/nowhere/file.json"
BROKEN_STAGES: list[tuple[Callable[[Stages], list[str]], Callable[[Stages], object], list[str]]] = [
    (of_project(check_modules), drop("merge_adapter"), ["merge_adapter: a module without a stage"]),
    (
        of_project(check_modules),
        rename("merge_adapter", "merge"),
        ["merge_adapter: a module without a stage", "merge: a stage without a module"],
    ),
    (
        check_params_of_project,
        drop("merge_adapter"),
        ["merge_adapter: a section without a stage or a stage without a section"],
    ),
    (
        of_project(check_read_params),
        put("train_adapter", "params", ["base.trust_remote_code", "train_adapter", "validate_data.datasets"]),
        ["train_adapter: params seed listed or taken, not both"],
    ),
    (
        of_project(check_read_params),
        put("merge_adapter", "params", ["base.trust_remote_code", "merge_adapter", "seed"]),
        ["merge_adapter: params seed listed or taken, not both"],
    ),
    (
        of_project(check_deps_exist),
        add_dep("merge_adapter", OUTSIDE),
        [f"merge_adapter: {OUTSIDE} is no stage's output"],
    ),
    (
        of_project(check_deps_exist),
        add_dep("merge_adapter", "data/merge_adapter/x.json"),
        ["merge_adapter: data/merge_adapter/x.json is no stage's output"],
    ),
    (
        of_project(check_deps_exist),
        add_dep("merge_adapter", "vocabgraft/no.py"),
        ["merge_adapter: vocabgraft/no.py does not exist"],
    ),
    (
        of_project(check_code_deps),
        remove_dep("merge_adapter", "vocabgraft/errors.py"),
        ["merge_adapter: vocabgraft/errors.py is imported but no dep"],
    ),
    (
        of_project(check_code_deps),
        add_dep("merge_adapter", "vocabgraft/data/validation.py"),
        ["merge_adapter: vocabgraft/data/validation.py is a dep but not imported"],
    ),
    (check_outs, put("merge_adapter", "outs", ["data/merged"]), ["merge_adapter: outs are ['data/merged']"]),
    (
        check_outs,
        put("merge_adapter", "outs", ["data/merge_adapter", "x"]),
        ["merge_adapter: outs are ['data/merge_adapter', 'x']"],
    ),
    (check_persistence, put("register_model", "outs", ["data/register_model"]), ["persist: true at []"]),
    (
        of_project(check_commands),
        in_command("merge_adapter", "--adapter data/train_adapter", ""),
        [
            "merge_adapter: options ['--base-identity', '--tokens', '--resized', '--datasets', '--contexts', '--out'], "
            "not ['--base-identity', '--tokens', '--resized', '--adapter', '--datasets', '--contexts', '--out']"
        ],
    ),
    (
        of_project(check_commands),
        in_command("merge_adapter", "tasks.merge_adapter", "tasks.merge"),
        ["merge_adapter: runs python -m tasks.merge"],
    ),
    (
        check_command_paths,
        in_command("merge_adapter", "data/train_adapter", OUTSIDE),
        [f"merge_adapter: --adapter {OUTSIDE} is not declared"],
    ),
    (
        check_command_paths,
        in_command("merge_adapter", "--out data/merge_adapter", "--out data/resize_base"),
        ["merge_adapter: --out data/resize_base is not declared"],
    ),
]


@pytest.mark.parametrize(("check", "break_it", "reported"), BROKEN_STAGES)
def test_a_broken_dvc_yaml_is_reported(
    check: Callable[[Stages], list[str]],
    break_it: Callable[[Stages], object],
    reported: list[str],
    stages: Stages,
) -> None:
    broken = copy.deepcopy(stages)
    break_it(broken)
    assert [problem for problem in check(broken) if problem not in check(stages)] == reported


@pytest.mark.parametrize(
    ("section", "key", "reported"),
    [
        ("train_adapter", "epoch", "params.train_adapter.epoch: no such field"),
        ("train_adapter.lora", "rank", "params.train_adapter.lora.rank: no such field"),
        ("register_model.gates", "gain", "params.register_model.gates.gain: no such field"),
        ("base.prompts", "passage", "params.base.prompts.passage: no such field"),
    ],
)
def test_a_key_without_a_field_is_reported(section: str, key: str, reported: str, stages: Stages) -> None:
    params = read_yaml("params.yaml")
    place = params
    for part in section.split("."):
        place = place[part]
    place[key] = 1
    assert check_params(params, stages) == [reported]


@pytest.mark.parametrize("key", ["seed", "train_adapter.lora.r", "register_model.gates.min_gain"])
def test_a_field_that_params_yaml_leaves_out_is_reported(key: str, stages: Stages) -> None:
    params = read_yaml("params.yaml")
    *parents, last = key.split(".")
    place = params
    for part in parents:
        place = place[part]
    del place[last]
    assert check_params(params, stages) == [f"params.{key}: not in params.yaml"]


def write(root: Path, name: str, *lines: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", ["flows/x.py", "tasks/x.py", "vocabgraft/deep/x.py", "other.yaml"])
def test_a_second_place_that_names_a_stages_data_is_reported(name: str, tmp_path: Path) -> None:
    write(tmp_path, name, "folder: data/merge_adapter/file")
    write(tmp_path, "dvc.yaml", "folder: data/merge_adapter")
    assert check_single_definition({"merge_adapter": {}}, tmp_path) == [f"{name} names data/merge_adapter"]
