"""A pack rebuilt for another base, as a command."""

from pathlib import Path

import pytest

from tests.flows.invoke import cli
from tests.vocabgraft.carrying_samples import build_small_base, pack_of
from tests.vocabgraft.conftest import load
from tests.vocabgraft.pack_samples import BAD_PACKS, write_bad_packs
from vocabgraft.packs.pack import identify
from vocabgraft.packs.pack_files import read_pack, write_pack
from vocabgraft.storage.artifacts import hash_files

main = cli("pack", "transfer")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small_base(tmp_path_factory.mktemp("carry") / "small")


@pytest.fixture
def pack(tiny_base: Path, in_folder: Path) -> Path:
    write_pack(pack_of(load(tiny_base)), in_folder / "pack")
    return in_folder / "pack"


def test_it_rebuilds_a_pack_and_says_what_it_cost(
    tiny_base: Path, small: Path, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(pack), "--base", str(small), "--pack-base", str(tiny_base), "--out", "carried"]
    assert main([*given, "--compare", "--method", "least_squares"]) == 0
    said = capsys.readouterr().out
    for told in (
        "distillation",
        "source_distillation",
        "matching_pursuit",
        "finds itself: MRR",
        "3 tokens transferred by least_squares in",
    ):
        assert told in said
    carried = read_pack(Path("carried"))
    assert carried.base == identify(load(small), str(small))
    assert carried.figures["carried_over"]["method"] == "least_squares"


@pytest.mark.parametrize(("options", "method"), [([], "distillation"), (["--pack-base"], "source_distillation")])
def test_with_the_packs_own_base_what_training_taught_is_brought_too(
    tiny_base: Path, small: Path, pack: Path, options: list[str], method: str
) -> None:
    assert main([str(pack), "--base", str(small), "--out", "carried", *(f"{o}={tiny_base}" for o in options)]) == 0
    assert read_pack(Path("carried")).figures["carried_over"]["method"] == method


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--method", "guess"], "there is no method 'guess'; allowed: distillation"),
        (["--method", "least_squares"], "least_squares needs the pack's own base"),
        (["--compare"], "matching_pursuit needs"),
        (["--base", "nowhere"], "--base is 'nowhere' at revision main"),
        (["--out", "pack"], "pack exists already"),
    ],
)
def test_bad_input_is_reported_and_leaves_nothing_behind(
    small: Path, pack: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert main([str(pack), "--base", str(small), "--out", "carried", *options]) == 2
    error = capsys.readouterr().err
    assert says in error and "vocabgraft: " in error
    assert [path.name for path in Path().iterdir()] == ["pack"]


def test_a_pack_that_cannot_be_read_or_is_of_another_base_is_refused(
    small: Path, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bad_packs(read_pack(pack), Path())
    before = hash_files(Path())
    for name, told in BAD_PACKS.items():
        assert main([name, "--base", str(small), "--pack-base", str(small), "--out", "carried"]) == 2
        error = capsys.readouterr().err.rpartition("vocabgraft: ")
        assert error[1] and told in error[2] and "Traceback" not in error[0]
    assert main(["pack", "--base", str(small), "--pack-base", str(small), "--out", "carried"]) == 2
    assert "the pack 'clinic' is for the base" in capsys.readouterr().err
    assert hash_files(Path()) == before
