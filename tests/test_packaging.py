"""What an installation brings: the wheel has the library alone, an editable install the whole project."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

WORKFLOW_TOOLS = ("dvc", "great_expectations", "mlflow", "prefect")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
# Finders that do not see the tools, as in an environment without them.
WITHOUT_TOOLS = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {WORKFLOW_TOOLS} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Without, sys.meta_path)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads, since setuptools writes beside it."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed; pip install -e '.[test]' has it")
    if int(version("setuptools").partition(".")[0]) < 77:
        pytest.skip(f"setuptools {version('setuptools')} does not know `license` as text; 77 does")
    folder = tmp_path_factory.mktemp("project")
    for name in ("vocabgraft", "tasks", "flows", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def python(code: str, *arguments: str, cwd: Path = ROOT) -> str:
    """What code prints that ends well in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def built(project: Path, hook: str) -> zipfile.ZipFile:
    """The wheel that a hook of the build backend makes, without network."""
    out = project / hook
    out.mkdir()
    python(BUILD, hook, str(out), cwd=project)
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel)


def tops(wheel: zipfile.ZipFile) -> set[str]:
    """The top-level names that a wheel puts into site-packages, its metadata aside."""
    return {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" not in name}


def requirements(extra: str | None = None) -> set[str]:
    """The names of the packages that the library, or an extra, asks for."""
    project = PROJECT["project"]
    given = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    return {Requirement(entry).name.lower().replace("_", "-") for entry in given}


def test_the_wheel_puts_the_library_alone_into_site_packages(project: Path) -> None:
    with built(project, "build_wheel") as wheel:
        assert tops(wheel) == {"vocabgraft"}
        assert {"vocabgraft/__init__.py", "vocabgraft/py.typed", "vocabgraft/cli.py"} <= set(wheel.namelist())
        files = {str(path.relative_to(ROOT)) for path in (ROOT / "vocabgraft").rglob("*.py")}
        assert files <= set(wheel.namelist())


def test_an_editable_install_puts_the_project_on_the_path(project: Path) -> None:
    with built(project, "build_editable") as wheel:
        (path_file,) = tops(wheel)
        assert path_file.endswith(".pth")
        assert Path(wheel.read(path_file).decode().strip()).resolve() == project.resolve()


def test_the_library_asks_for_no_workflow_tool_and_the_extra_for_all() -> None:
    tools = {name.replace("_", "-") for name in WORKFLOW_TOOLS}
    assert requirements() & tools == set()
    assert tools <= requirements("pipeline")


def test_make_run_installs_the_pipeline() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\n$(VENV)/.installed:")[2].partition("\n\n")[0]
    assert '-c constraints.txt -e ".[pipeline]"' in recipe


def test_every_pin_is_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if line and not line.startswith("#"))
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["pipeline"], *extras["onnx"]]
    wrong = []
    for requirement in map(Requirement, needed):
        # An extra of the project itself, whose own requirements are asked for here too.
        if requirement.name == project["name"]:
            continue
        pin = pins.get(requirement.name.lower().replace("_", "-"))
        if pin is None or pin not in requirement.specifier:
            wrong.append((str(requirement), pin))
    assert wrong == []


def test_the_public_names_need_no_workflow_tool() -> None:
    code = f"{WITHOUT_TOOLS}\nimport vocabgraft\nfor name in vocabgraft.__all__: getattr(vocabgraft, name)\n"
    code += f"print(sorted({set(WORKFLOW_TOOLS)} & {{name.partition('.')[0] for name in sys.modules}}))"
    assert python(code).splitlines()[-1] == "[]"


def command(tmp_path: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """`vocabgraft --help` where site-packages has these of the project's packages and no workflow tool."""
    for name in names:
        (tmp_path / name).symlink_to(ROOT / name)
    code = f"{WITHOUT_TOOLS}\nsys.path.insert(0, {str(tmp_path)!r})\nfrom vocabgraft.cli import main\nmain()"
    # -S leaves out the path files of the project's own environment.
    return subprocess.run(
        [sys.executable, "-S", "-c", code, "--help"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_of_the_library_alone_says_where_the_pipeline_comes_from(tmp_path: Path) -> None:
    done = command(tmp_path, "vocabgraft")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert all(part in done.stderr for part in ("vocabgraft: ", "checkout", "make run", '".[pipeline]"'))


def test_the_command_of_a_project_without_the_extra_names_what_is_missing(tmp_path: Path) -> None:
    done = command(tmp_path, "vocabgraft", "flows")
    assert (done.returncode, done.stdout) == (2, "")
    assert all(part in done.stderr for part in (*WORKFLOW_TOOLS, '".[pipeline]"'))


def test_the_command_of_the_project_shows_the_help_of_the_pipeline() -> None:
    code = "import sys; sys.argv[0] = 'vocabgraft'; from vocabgraft.cli import main; main()"
    assert "Usage: vocabgraft" in python(code, "--help")


def test_every_pin_has_the_hash_of_its_file() -> None:
    def pins(name: str) -> dict[str, str]:
        found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s]+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found}

    pinned, hashed = pins("constraints.txt"), pins("constraints.hashes.txt")
    assert hashed == {package: version for package, version in pinned.items() if package != "torch"}
    lines = (ROOT / "constraints.hashes.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert all(re.search(r" --hash=sha256:[0-9a-f]{64}$", line) for line in lines)
