"""Stage evaluate_model: scores base, resized, merged and control on the same held-out texts."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.support.models import find_base
from tasks.support.stage import run_stage
from vocabgraft.config.stages import BaseParams, EvaluateModelParams, ValidateDataParams
from vocabgraft.data.accepted import read_contexts, read_datasets, read_retention
from vocabgraft.data.beir import read_benchmarks
from vocabgraft.data.mteb import load_tasks, score_tasks
from vocabgraft.data.splits import is_held_out
from vocabgraft.evaluation.evaluate import (
    WITHOUT_NEW_TOKENS,
    Evaluation,
    Questions,
    evaluate,
    gains_for_plots,
    item_columns,
    key_metrics,
)
from vocabgraft.evaluation.evaluated_model import compare_speed
from vocabgraft.evaluation.retention import reference_corpus
from vocabgraft.models.base import load_model, prompts_of
from vocabgraft.models.encode import encode
from vocabgraft.storage.artifacts import new_folder, read_json, read_manifest, require_artifact, write_json
from vocabgraft.tokens.new_token import read_with_descriptions
from vocabgraft.tokens.tokenizer import ExtendedToken, added_tokens, read_tokens
from vocabgraft.training.adapters import merge_adapter

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

# Speed differs from run to run, so DVC does not track it.
SPEED = Path("reports/speed.json")
TEXTS_TIMED = 128
# Only the relations with the lowest gain are printed.
RELATIONS_SHOWN = 10


def evaluate_model(
    data: Path,
    tokens: Path,
    resized: Path,
    merged: Path,
    control: Path,
    out: Path,
    params: EvaluateModelParams,
    base: BaseParams,
    seed: int,
    validate_data: ValidateDataParams,
) -> None:
    """Measure the gain of the new tokens and their cost on other texts."""
    tasks = load_tasks(params.mteb_tasks)
    models = _load_models(data, resized, merged, control, base)
    new_tokens = read_tokens(tokens)
    contexts = read_contexts(data / "contexts.parquet")
    share = read_json(resized / "report.json")["held_out_contexts"]
    questions = Questions(
        datasets=read_datasets(data / "datasets"),
        retention=read_retention(data / "retention.parquet"),
        translations=frozenset(entry.name for entry in validate_data.datasets if entry.is_translation),
        contexts=contexts,
        held_out_contexts=[text for text in contexts if is_held_out(text, share)],
        benchmarks=read_benchmarks(data / "benchmarks"),
    )
    found = evaluate(models, questions, new_tokens, params, seed)
    for name, model in models.items():
        found.metrics[name].update(score_tasks(tasks, model, params.batch_size))
    _log(found)
    with new_folder(out) as work:
        write_json(work / "metrics.json", found.metrics)
        write_json(work / "key_metrics.json", key_metrics(found))
        write_json(work / "comparison.json", found.comparison)
        write_json(work / "retention.json", found.retention)
        write_json(work / "tokens.json", found.tokens)
        write_json(work / "searches.json", {"datasets": found.searches})
        write_json(work / "gains.json", gains_for_plots(found.comparison))
        pq.write_table(pa.table(item_columns(found.measurements)), work / "items.parquet")
    digest, _ = read_manifest(merged)
    _record_speed(models, reference_corpus(questions.texts(), TEXTS_TIMED), new_tokens, params.batch_size, digest)


def _load_models(
    data: Path, resized: Path, merged: Path, control: Path, base: BaseParams
) -> "dict[str, SentenceTransformer]":
    trusted = base.trust_remote_code
    folder = find_base(data / "base.json", trusted)
    models = {"base": load_model(folder, trust_remote_code=trusted)}
    for name, path in {"resized": resized, "merged": merged}.items():
        models[name] = load_model(require_artifact(path), own_modules=True, trust_remote_code=trusted)
    if read_json(require_artifact(control) / "report.json")["trained"]:
        models["control"] = load_model(folder, trust_remote_code=trusted)
        merge_adapter(models["control"], control)
    for name in WITHOUT_NEW_TOKENS & models.keys():
        models[name].prompts = prompts_of(models[name].prompts, base.prompts)
    return models


def _record_speed(
    models: "dict[str, SentenceTransformer]",
    texts: list[str],
    tokens: list[ExtendedToken],
    batch_size: int,
    digest: str,
) -> None:
    """Time base and merged on the same texts; the digest identifies the timed model."""
    described = [token.new_token for token in added_tokens(tokens)]
    read = [read_with_descriptions(text, described) for text in texts]
    speed = compare_speed(
        lambda: encode(models["base"], read, batch_size),
        lambda: encode(models["merged"], texts, batch_size),
        len(texts),
    )
    logger.info(
        "texts a second: base %(base_texts_per_second)g, merged %(merged_texts_per_second)g (ratio %(ratio)g)", speed
    )
    SPEED.parent.mkdir(parents=True, exist_ok=True)
    write_json(SPEED, {**speed, "merged_digest": digest})


def _log(found: Evaluation) -> None:
    for item in found.comparison["items"]:
        # The hits of link prediction follow its MRR; comparison.json has them.
        if item["subset"] == "all" and not item["metric"].startswith("link_hits"):
            logger.info(
                "%(dataset)s, %(metric)s: %(base).2f before, %(merged).2f after; %(gain)+.2f "
                "(%(low)+.2f to %(high)+.2f, p %(p_value).3f, %(queries)d items): %(verdict)s",
                item,
            )
    for row in found.comparison["relations"][:RELATIONS_SHOWN]:
        logger.info(
            "%(dataset)s, relation %(relation)s, %(metric)s: %(base).2f before, %(merged).2f after; %(gain)+.2f "
            "(%(low)+.2f to %(high)+.2f, %(queries)d triples): %(verdict)s",
            row,
        )
    if (more := len(found.comparison["relations"]) - RELATIONS_SHOWN) > 0:
        logger.info("%d more relations are in comparison.json", more)
    for sentence in found.comparison["control"].get("says", ()):
        logger.info("control: %s", sentence)
    for problem in found.problems:
        logger.warning("warning: %s", problem)


if __name__ == "__main__":
    raise SystemExit(run_stage(evaluate_model))
