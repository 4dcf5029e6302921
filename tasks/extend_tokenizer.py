"""Stage extend_tokenizer: adds the accepted vocabulary to the base's tokenizer."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.support.models import find_base
from tasks.support.stage import run_stage
from vocabgraft.config.stages import BaseParams, ExtendTokenizerParams
from vocabgraft.data.accepted import read_contexts, read_datasets, read_new_tokens, training_texts
from vocabgraft.model_folder.remote_code import drop_auto_maps
from vocabgraft.storage.artifacts import new_folder, write_json
from vocabgraft.tokens.new_token import NewToken
from vocabgraft.tokens.segmentation import SegmentationReport, segmentation_report
from vocabgraft.tokens.tokenizer import ExtendedToken, load_base_tokenizer, load_tokenizer, tokens_added_before
from vocabgraft.tokens.tokenizer import extend_tokenizer as extend

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def extend_tokenizer(
    base_identity: Path,
    vocabulary: Path,
    datasets: Path,
    contexts: Path,
    out: Path,
    params: ExtendTokenizerParams,
    base: BaseParams,
) -> None:
    """Add the accepted tokens that the base lacks, and report how the segmentation of the training texts changes.

    `tokens.json` lists the tokens whose rows train. Tokens that the base has from an earlier run keep their rows and
    appear only in the report, unless `retrain` names them.
    """
    folder = find_base(base_identity, base.trust_remote_code)
    tokenizer = load_tokenizer(folder, base.trust_remote_code)
    base_tokenizer = load_base_tokenizer(folder, base.trust_remote_code)
    wanted = read_new_tokens(vocabulary)
    tokens = extend(tokenizer, base_tokenizer, wanted, params.max_token_characters, params.retrain)
    texts = training_texts(read_datasets(datasets), read_contexts(contexts))
    report = _report(segmentation_report(base_tokenizer, tokenizer, tokens, texts), base_tokenizer, tokens, wanted)
    with new_folder(out) as work:
        tokenizer.save_pretrained(work / "tokenizer")
        if not base.trust_remote_code:
            drop_auto_maps(work)
        write_json(work / "tokens.json", [token.as_json() for token in tokens])
        write_json(work / "report.json", report)


def _report(
    segmentation: SegmentationReport, base: "Tokenizer", tokens: Sequence[ExtendedToken], wanted: Sequence[NewToken]
) -> dict[str, Any]:
    """Metrics of all texts; id, old subword tokens and number of texts of each trained token; ids of kept tokens."""
    figures = asdict(segmentation)
    uses, before = figures.pop("uses"), tokens_added_before(base)
    listed = [
        {
            "text": token.text,
            "kind": token.kind,
            "id": token.id,
            "retrained": token.retrained,
            "pieces": token.pieces,
            "read_as": [base.id_to_token(piece) for piece in token.pieces],
            "texts": uses[token.text],
        }
        for token in tokens
    ]
    kept = [{"text": token.text, "id": before[token.text][0]} for token in wanted if token.text in before]
    return {**figures, "tokens": listed, "kept": kept}


if __name__ == "__main__":
    raise SystemExit(run_stage(extend_tokenizer))
