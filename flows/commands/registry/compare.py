"""`vocabgraft registry compare`: two versions, by their embeddings of the same texts and their metrics."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from flows.commands.output import Json, ModelName, Output
from flows.engine.prefect_run import recorded
from vocabgraft.config.params import load_params
from vocabgraft.errors import VocabgraftError

if TYPE_CHECKING:
    from tasks.registry.lookup import Client, Registered

# Number of held-out items if no text is given.
TEXTS = 10
BATCH_SIZE = 32


def compare_versions(
    first: Annotated[int, Argument(metavar="A", help="A version, such as 6.")],
    second: Annotated[int, Argument(metavar="B", help="Another version, such as 7.")],
    text: Annotated[list[str] | None, Option(metavar="TEXT", help="A text to encode with both; repeatable.")] = None,
    file: Annotated[
        Path | None, Option(help="Texts, one per line. Default: the first held-out items of version B.")
    ] = None,
    name: ModelName = None,
    as_json: Json = False,
) -> None:
    """Compare two versions: what changed, embeddings of the same texts, and metrics.

    What changed: parameters, words, rows of data, and metrics on the same held-out items with 95 % intervals.
    """
    texts = [*(text or []), *(_texts_in(file) if file is not None else [])]
    found = recorded("compare", lambda: compare(name, (first, second), texts))
    output = Output(as_json)
    output.show(_changes_table(found))
    if found["changes"]["figures"]:
        output.show(_paired_table(found))
    for problem in found["changes"]["problems"]:
        output.line(problem)
    output.show(_texts_table(found))
    output.show(_figures_table(found))
    output.document(found)


def compare(name: str | None, numbers: Sequence[int], texts: Sequence[str]) -> dict[str, Any]:
    """Encode texts with two versions, and compare their metrics.

    Returns:
        `name` and `versions`; `changes` of `tasks.registry.changes`; `texts`: for each text its tokens, the cosine
        between both embeddings (None if their widths differ) and the cosine to the text before it, by version;
        `figures`: the metrics of both by name.
    """
    from tasks.registry.changes import changes, recorded
    from tasks.registry.lookup import connect
    from tasks.registry.versions import figures_on, find_version

    params = load_params()
    name = name or params.register_model.name
    client = connect()
    versions = [find_version(client, name, number) for number in numbers]
    texts = list(texts) or _held_out_texts(client, versions[1])
    told = [_encoded(version, texts) for version in versions]
    figures = [figures_on(client, version) for version in versions]
    before, after = (recorded(client, version) for version in versions)
    return {
        "name": name,
        "versions": [version.version for version in versions],
        "changes": changes(before, after, versions[0], params.seed),
        "texts": _texts_beside(texts, told),
        "figures": {key: [part.get(key) for part in figures] for key in sorted({*figures[0], *figures[1]})},
    }


def _encoded(version: "Registered", texts: list[str]) -> tuple[Any, list[int]]:
    """Unit embeddings of shape (texts, width), and the number of tokens of each text."""
    import numpy as np

    from tasks.registry.lookup import download_model
    from vocabgraft.models.base import load_model
    from vocabgraft.models.encode import encode

    folder = download_model(f"models:/{version.name}/{version.version}")
    model = load_model(folder, device="cpu", own_modules=True)
    found = encode(model, texts, BATCH_SIZE)
    length = np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return found / length, [len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def _texts_beside(texts: Sequence[str], told: Sequence[tuple[Any, list[int]]]) -> list[dict[str, Any]]:
    (left, left_tokens), (right, right_tokens) = told
    alike = (left * right).sum(axis=1).tolist() if left.shape == right.shape else [None] * len(texts)
    # To the text before it: a search depends on how close two texts are, and this works for different widths.
    to_before = [[None, *(vectors[1:] * vectors[:-1]).sum(axis=1).tolist()] for vectors in (left, right)]
    return [
        {
            "text": text,
            "tokens": [left_tokens[place], right_tokens[place]],
            "cosine": alike[place],
            "cosine_to_the_text_before": [to_before[0][place], to_before[1][place]],
        }
        for place, text in enumerate(texts)
    ]


def _held_out_texts(client: "Client", version: "Registered") -> list[str]:
    import pyarrow.parquet as pq

    from tasks.registry.champion import ITEMS
    from tasks.registry.register import artifact_of

    with artifact_of(client, version, ITEMS) as path:
        if path is None:
            raise VocabgraftError(f"version {version.version} has no recorded held-out items; give texts with --text")
        return list(dict.fromkeys(pq.read_table(path)["item"].to_pylist()))[:TEXTS]


def _texts_in(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VocabgraftError(f"--file {file} cannot be read: {error}") from error
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise VocabgraftError(f"--file {file} has no text; give one per line")
    return texts


def _changes_table(found: dict[str, Any]) -> Table:
    left, right = found["versions"]
    changed = found["changes"]
    table = Table(title=f"{found['name']}: what changed from version {left} to {right}", title_justify="left")
    for heading in ("what", f"version {left}", f"version {right}"):
        table.add_column(heading, overflow="fold")
    rows = [(key, *map(str, values)) for key, values in changed["params"].items()]
    rows += [(f"rows of {name}", f"{old:,}", f"{new:,}") for name, (old, new) in changed["rows"].items()]
    if words := changed["words"]["removed"]:
        rows.append((f"{len(words):,} words removed", ", ".join(words), ""))
    if words := changed["words"]["added"]:
        rows.append((f"{len(words):,} words added", "", ", ".join(words)))
    for row in rows or [("no parameter, word or row of data", "", "")]:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _paired_table(found: dict[str, Any]) -> Table:
    table = Table(title="metrics on the same held-out items", title_justify="left")
    table.add_column("metric")
    for heading in (*(f"version {number}" for number in found["versions"]), "gain", "95 % interval", "p", "items"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for entry in found["changes"]["figures"]:
        named = f"{entry['dataset']}, {entry['subset'].replace('_', ' ')}: {entry['metric']}"
        numbers = [f"{entry[key]:.2f}" for key in ("before", "after")]
        interval = f"{entry['low']:+.2f} to {entry['high']:+.2f}"
        told = (f"{entry['gain']:+.2f}", interval, f"{entry['p_value']:.3f}", f"{entry['items']:,}", entry["verdict"])
        table.add_row(Text(named), *numbers, *told)
    return table


def _texts_table(found: dict[str, Any]) -> Table:
    left, right = found["versions"]
    table = Table(title=f"{found['name']}: versions {left} and {right} on the same texts", title_justify="left")
    table.add_column("text", overflow="fold")
    headings = (f"tokens {left}", f"tokens {right}", "cosine of both", f"cosine to the text before, {left}", f"{right}")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in found["texts"]:
        numbers = [row["cosine"], *row["cosine_to_the_text_before"]]
        table.add_row(Text(row["text"]), *map(str, row["tokens"]), *map(_number, numbers))
    return table


def _figures_table(found: dict[str, Any]) -> Table:
    table = Table(title="metrics on held-out items", title_justify="left")
    table.add_column("metric")
    for number in found["versions"]:
        table.add_column(f"version {number}", justify="right")
    table.add_column("difference", justify="right")
    for name, (left, right) in found["figures"].items():
        differs = "" if None in (left, right) else f"{right - left:+.4f}"
        table.add_row(name, _number(left), _number(right), differs)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
