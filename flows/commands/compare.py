"""Two registered versions side by side: what they make of given texts, and their figures.

python -m flows.commands.compare --help
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from flows.engine.prefect_run import recorded
from tasks.support.stage import switch_telemetry_off
from vocabgraft.config.params import load_params
from vocabgraft.errors import VocabgraftError

if TYPE_CHECKING:
    from tasks.registry.lookup import Client, Registered

# Of the held-out items, where no text is given.
TEXTS = 10
BATCH_SIZE = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    switch_telemetry_off()
    try:
        found = recorded("compare", lambda: compare(options.name, options.versions, _given_texts(options)))
    except VocabgraftError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(_texts_table(found))
    console.print(_figures_table(found))
    return 0


def compare(name: str | None, numbers: Sequence[int], texts: Sequence[str]) -> dict[str, Any]:
    """Encode texts with two versions and put their figures beside each other.

    Returns:
        `name` and `versions`; `texts` with the tokens and the cosine of both embeddings of each (None where the
        embeddings have different widths); `similarities` between neighbouring texts by either; `figures` by name.
    """
    from tasks.registry.lookup import connect
    from tasks.registry.versions import figures_on, find_version

    name = name or load_params().register_model.name
    client = connect()
    versions = [find_version(client, name, number) for number in numbers]
    texts = list(texts) or _held_out_texts(client, versions[1])
    told = [_encoded(version, texts) for version in versions]
    figures = [figures_on(client, version) for version in versions]
    return {
        "name": name,
        "versions": [version.version for version in versions],
        "texts": _texts_beside(texts, told),
        "figures": {key: [part.get(key) for part in figures] for key in sorted({*figures[0], *figures[1]})},
    }


def _encoded(version: "Registered", texts: list[str]) -> tuple[Any, list[int]]:
    """Unit embeddings of shape (texts, width), and how many tokens each text has."""
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
    # To the text before it: how close two texts are is what a search sees, and differs between models of any width.
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
            raise VocabgraftError(f"version {version.version} has no held-out items on record; give texts with --text")
        return list(dict.fromkeys(pq.read_table(path)["item"].to_pylist()))[:TEXTS]


def _given_texts(options: argparse.Namespace) -> list[str]:
    texts = list(options.text)
    if options.file is not None:
        try:
            lines = options.file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise VocabgraftError(f"--file {options.file} cannot be read: {error}") from error
        texts += [line for line in lines if line.strip()]
        if not texts:
            raise VocabgraftError(f"--file {options.file} holds no text; give one a line")
    return texts


def _texts_table(found: dict[str, Any]) -> Table:
    left, right = found["versions"]
    table = Table(title=f"{found['name']}: versions {left} and {right} on the same texts", title_justify="left")
    table.add_column("text", overflow="fold")
    headings = (f"tokens {left}", f"tokens {right}", "cosine of both", f"to the text before, {left}", f"{right}")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in found["texts"]:
        numbers = [row["cosine"], *row["cosine_to_the_text_before"]]
        table.add_row(row["text"], *map(str, row["tokens"]), *map(_number, numbers))
    return table


def _figures_table(found: dict[str, Any]) -> Table:
    table = Table(title="figures on held-out items", title_justify="left")
    table.add_column("figure")
    for number in found["versions"]:
        table.add_column(f"version {number}", justify="right")
    table.add_column("difference", justify="right")
    for name, (left, right) in found["figures"].items():
        differs = "" if None in (left, right) else f"{right - left:+.4f}"
        table.add_row(name, _number(left), _number(right), differs)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.commands.compare",
        description="Put two registered versions side by side: embeddings of given texts, and their figures.",
    )
    add = parser.add_argument
    add("versions", nargs=2, type=int, metavar="N", help="two versions")
    add("--text", action="append", default=[], help="a text; may be repeated")
    add("--file", type=Path, help="texts, one a line (default: the first held-out items of the second version)")
    add("--name", help="of the registered model (default: register_model.name in params.yaml)")
    add("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
