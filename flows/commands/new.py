"""`vocabgraft new`: makes a new project from your own files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from typer import Argument, Option

from flows.commands.output import DEFAULT_BASE, MODEL, Json, Output, Quiet
from vocabgraft.errors import VocabgraftError

if TYPE_CHECKING:
    import pandas as pd

    from vocabgraft.config.losses import Format

# The checkout that this code belongs to: its dvc.yaml is the DAG of every project.
ROOT = Path(__file__).parent.parent.parent
# Formats by the columns of a file of examples, the most specific first.
FORMATS: "tuple[Format, ...]" = ("triples", "triplets", "scored_pairs", "pairs")
HELD_OUT = {"validation": 0.1, "test": 0.25}
# Fewer held-out items rarely show a gain of any size.
ENOUGH_ITEMS, LEAST_ITEMS = 200, 20
MIN_FIDELITY = 0.85
# Fewest described words that make a dataset of pairs if there are no pairs; docs/words_without_pairs.md has the gain.
LEAST_DESCRIBED = 10
GLOSSES, GLOSSES_HELD_OUT = "glosses", {"test": 0.2}
# Names that the project gives to other tables.
RAW_NAMES = frozenset({"vocabulary", "contexts", "retention"})
DVC_CONFIG = """[core]
    analytics = false
    check_update = false
    no_scm = true
"""
DVC_IGNORE = "/config.local\n/tmp\n/cache\n"
GIT_IGNORE = "/data/*\n!/data/raw/\n/reports/\n/mlflow.db*\n/mlruns/\n/mlartifacts/\n/.checkpoints/\n"


@dataclass(frozen=True)
class Choice:
    """What the command chose, and why."""

    setting: str
    value: str
    reason: str


@dataclass(frozen=True)
class Examples:
    """A table of examples with the columns of its format."""

    dataset_format: "Format"
    rows: "pd.DataFrame"

    @property
    def held_out_items(self) -> int:
        """About how many items the test split gets."""
        return int(len(self.rows) * HELD_OUT["test"])

    @property
    def metric(self) -> str:
        """What the test split measures first."""
        return "spearman" if self.dataset_format == "scored_pairs" else "mrr"


@dataclass(frozen=True)
class Given:
    """The user's files, read.

    Attributes:
        words: `token`, `kind`, `description`.
        examples: a table for each file of examples, by the name that its dataset gets.
        contexts: texts, in order, each once.
    """

    words: "pd.DataFrame"
    examples: "dict[str, Examples]"
    contexts: list[str]


def new(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="The project's folder; it must not exist.")],
    vocabulary: Annotated[
        Path, Option(metavar="FILE", help="Table of the words: column token, optionally kind and description.")
    ],
    pairs: Annotated[
        list[Path] | None,
        Option(
            metavar="FILE",
            help="Table of examples: anchor, positive (and negative); sentence1, sentence2, score; or head, relation, "
            "tail. Repeatable.",
        ),
    ] = None,
    corpus: Annotated[
        list[Path] | None, Option(metavar="FILE", help="Texts that use the words: .txt, .csv, .jsonl, .parquet, .gz.")
    ] = None,
    column: Annotated[str, Option(metavar="NAME", help="Column of the texts if the corpus is a table.")] = "text",
    base: Annotated[str, Option(metavar="MODEL", help=f"Base: {MODEL}.")] = DEFAULT_BASE,
    name: Annotated[
        str | None, Option("--name", metavar="NAME", help="Registered model. Default: the folder's name.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a project of your own from your own files."""
    if folder.exists():
        raise VocabgraftError(f"{folder} exists; name a new folder, or delete it")
    given = _read(vocabulary, pairs or [], corpus or [], column)
    title = _as_name(name or folder.resolve().name)
    params, choices = _params(given, _located(base), title)
    _write(folder, params, given)
    output = Output(as_json, quiet)
    output.show(_table(folder, choices))
    output.line(f"next: cd {folder} && vocabgraft run --plan && vocabgraft run")
    output.document(
        {
            "folder": str(folder),
            "words": len(given.words),
            "examples": {name: len(examples.rows) for name, examples in given.examples.items()},
            "contexts": len(given.contexts),
            "choices": {choice.setting: {"value": choice.value, "reason": choice.reason} for choice in choices},
        }
    )


def _read(vocabulary: Path, pairs: Sequence[Path], corpus: Sequence[Path], column: str) -> Given:
    examples: dict[str, Examples] = {}
    for path in pairs:
        name = _as_name(path.name.partition(".")[0]).replace("-", "_")
        if name in examples or name in RAW_NAMES:
            raise VocabgraftError(
                f"--pairs {path}: the dataset {name} would be written twice; allowed: file names that differ from each "
                f"other and from {', '.join(sorted(RAW_NAMES))}. Rename the file"
            )
        examples[name] = _examples(path)
    return Given(_words(vocabulary), examples, _texts(corpus, column))


def _words(path: Path) -> "pd.DataFrame":
    """The words, each with a kind; where the file has none, the text decides."""
    from vocabgraft.api.words import kind_of
    from vocabgraft.data.raw_files import read_table

    words = read_table(path, ("token",), ("kind", "description"))
    for missing in {"kind", "description"} - set(words.columns):
        words[missing] = None
    words["description"] = words["description"].fillna("")
    words["kind"] = [kind or kind_of(token or "") for token, kind in zip(words["token"], words["kind"], strict=True)]
    if words.empty:
        raise VocabgraftError(f"{path} has no row; give each word a row, in the column token")
    return words[["token", "kind", "description"]]


def _examples(path: Path) -> Examples:
    """The examples in the first format whose columns the file has."""
    from vocabgraft.config.datasets import COLUMNS, OPTIONAL_COLUMNS
    from vocabgraft.data.raw_files import read_table

    asked = {name for kind in FORMATS for name in (*COLUMNS[kind], *OPTIONAL_COLUMNS[kind])}
    present = set(read_table(path, (), sorted(asked)).columns)
    for kind in FORMATS:
        if present.issuperset(COLUMNS[kind]):
            table = read_table(path, COLUMNS[kind], OPTIONAL_COLUMNS[kind])
            return Examples(kind, table[[name for name in table.columns if name != "row"]])
    allowed = "; ".join(", ".join(COLUMNS[kind]) for kind in reversed(FORMATS))
    raise VocabgraftError(
        f"{path} does not have the columns of any format; allowed: {allowed}; found: "
        f"{', '.join(sorted(present - {'row'})) or 'none of them'}. Rename the columns"
    )


def _texts(files: Sequence[Path], column: str) -> list[str]:
    from vocabgraft.planning.corpus import find_files, read_blocks, split_files

    if not files:
        return []
    parts = split_files(find_files(files), (column,))
    texts = (" ".join(text.split()) for part in parts for block in read_blocks(part, (column,)) for text in block.texts)
    return [text for text in dict.fromkeys(texts) if text]


def _located(base: str) -> str:
    """A folder by its absolute path, since the project lies elsewhere; any other name as it is."""
    from tasks.support.models import model_folder

    model_folder("--base", base)
    return str(Path(base).resolve()) if Path(base).is_dir() else base


def _as_name(text: str) -> str:
    """A name that a registered model and a pack may have."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_").lower() or "my-model"


def _params(given: Given, base: str, name: str) -> tuple[dict[str, Any], list[Choice]]:
    """The whole of params.yaml as plain values, and what was chosen."""
    data, gates, choices = _data_and_gates(given)
    params = {
        "seed": 17,
        "base": {"model": base, "prompts": {"query": None, "document": None}, "trust_remote_code": False},
        "validate_data": data,
        "extend_tokenizer": {"max_token_characters": 64},
        "resize_base": {"initialisation": "distillation", "modules": []},
        "train_adapter": {"method": "tokens", "epochs": 2, "arguments": {}, "best_metric": None, "evaluators": []},
        "merge_adapter": {"name": name},
        "train_control": {},
        "check_consistency": {"waived": {}},
        "evaluate_model": {"control": False, "benchmarks": [], "mteb_tasks": []},
        "register_model": {"name": name, "gates": gates},
    }
    return params, [Choice("register_model.name", name, "the folder's name, or --name"), *choices]


def _data_and_gates(given: Given) -> tuple[dict[str, Any], dict[str, Any], list[Choice]]:
    data: dict[str, Any] = {"vocabulary": "vocabulary.csv", "contexts": ["contexts.txt"] if given.contexts else []}
    retention = Choice("validate_data.retention", "left out", "the package's own general pairs are used")
    datasets = [
        {"name": name, "format": examples.dataset_format, "files": {"train": f"{name}.csv"}, "held_out": dict(HELD_OUT)}
        for name, examples in given.examples.items()
    ]
    if given.examples:
        gates, choices = _gates_of_pairs(given.examples)
    elif (described := _described(given.words)) >= LEAST_DESCRIBED:
        datasets = [{"name": GLOSSES, "format": "pairs", "from": "descriptions", "held_out": GLOSSES_HELD_OUT}]
        gates, choices = _gates_of_descriptions(described, bool(given.contexts))
    else:
        gates, choices = _gates_without_pairs(bool(given.contexts))
    return data | {"datasets": datasets}, gates, [retention, *choices]


def _described(words: "pd.DataFrame") -> int:
    """Words and symbols with a description; one of a special token makes no pair."""
    return int(((words["description"].str.strip() != "") & (words["kind"] != "special")).sum())


def _gates_of_descriptions(described: int, has_contexts: bool) -> tuple[dict[str, Any], list[Choice]]:
    gates, (_, benefit) = _gates_without_pairs(has_contexts)
    why = f"{described} words have a description; each word, and texts that use it, are paired with it"
    items = int(described * GLOSSES_HELD_OUT["test"])
    if items >= LEAST_ITEMS:
        first = "evidence" if items >= ENOUGH_ITEMS else "any"
        gates |= {"benefit": f"{GLOSSES}.new_word.mrr", "first_champion": first}
        benefit = Choice("register_model.gates.benefit", gates["benefit"], f"about {items} words are held out")
    return gates, [Choice("validate_data.datasets", f"{GLOSSES} (from: descriptions)", why), benefit]


def _gates_without_pairs(has_contexts: bool) -> tuple[dict[str, Any], list[Choice]]:
    benefit = "fidelity" if has_contexts else None
    why = f"no pairs; at least {MIN_FIDELITY}" if benefit else "no pairs and no corpus, so there is nothing to measure"
    choices = [
        Choice("validate_data.datasets", "[]", "no --pairs: the rows are distilled and not trained"),
        Choice("register_model.gates.benefit", benefit or "null", why),
    ]
    return {"benefit": benefit, "min_fidelity": MIN_FIDELITY}, choices


def _gates_of_pairs(tables: "Mapping[str, Examples]") -> tuple[dict[str, Any], list[Choice]]:
    """The dataset with the most held-out items judges the benefit."""
    name, judging = max(tables.items(), key=lambda item: item[1].held_out_items)
    items = judging.held_out_items
    benefit, why = f"{name}.new_word.{judging.metric}", "the metric of the held-out examples"
    if items < LEAST_ITEMS:
        benefit, why = "fidelity", f"about {items} held-out items, too few to show anything"
    first = "evidence" if items >= ENOUGH_ITEMS else "any"
    listed = ", ".join(f"{name} ({one.dataset_format}, {len(one.rows)} rows)" for name, one in tables.items())
    choices = [
        Choice("validate_data.datasets", listed, "recognized by the columns of each file"),
        Choice("register_model.gates.benefit", benefit, why),
        Choice(
            "register_model.gates.first_champion",
            first,
            f"about {items} held-out items; {ENOUGH_ITEMS} can show a gain",
        ),
    ]
    return {"benefit": benefit, "min_fidelity": MIN_FIDELITY, "first_champion": first}, choices


def _write(folder: Path, params: Mapping[str, Any], given: Given) -> None:
    """Write the whole folder, or nothing."""
    from vocabgraft.storage.atomic import put_in_place, work_beside

    with work_beside(folder) as work:
        raw = work / "data" / "raw"
        raw.mkdir(parents=True)
        given.words.to_csv(raw / "vocabulary.csv", index=False)
        for name, examples in given.examples.items():
            examples.rows.to_csv(raw / f"{name}.csv", index=False)
        if given.contexts:
            (raw / "contexts.txt").write_text("\n".join(given.contexts) + "\n", encoding="utf-8")
        _write_settings(work, params)
        work.chmod(0o755)
        put_in_place(work, folder)


def _write_settings(work: Path, params: Mapping[str, Any]) -> None:
    import yaml

    (work / "params.yaml").write_text(yaml.safe_dump(dict(params), sort_keys=False), encoding="utf-8")
    (work / "dvc.yaml").write_text(_dag(), encoding="utf-8")
    (work / ".gitignore").write_text(GIT_IGNORE, encoding="utf-8")
    (work / ".dvcignore").write_text("", encoding="utf-8")
    (work / ".dvc").mkdir()
    (work / ".dvc" / "config").write_text(DVC_CONFIG, encoding="utf-8")
    (work / ".dvc" / ".gitignore").write_text(DVC_IGNORE, encoding="utf-8")
    from vocabgraft.config.params import load_params

    load_params(work / "params.yaml")


def _dag() -> str:
    """dvc.yaml without its code deps: the code lies in another folder, which DVC does not track from here."""
    import yaml

    source = ROOT / "dvc.yaml"
    if not source.is_file():
        raise VocabgraftError(
            f"{source} is missing; `vocabgraft new` works from a checkout: pip install -e '.[pipeline]'"
        )
    dag = yaml.safe_load(source.read_text(encoding="utf-8"))
    for stage in dag["stages"].values():
        stage["deps"] = [dep for dep in stage.get("deps", []) if str(dep).startswith("data/")]
    text: str = yaml.safe_dump(dag, sort_keys=False, width=110)
    return f"# The stages, made by `vocabgraft new`. After an update of vocabgraft: vocabgraft run --force\n{text}"


def _table(folder: Path, choices: Sequence[Choice]) -> Table:
    table = Table(title=f"{folder}: chosen settings")
    for heading in ("setting", "value", "why"):
        table.add_column(heading)
    for choice in choices:
        table.add_row(choice.setting, choice.value, choice.reason)
    return table
