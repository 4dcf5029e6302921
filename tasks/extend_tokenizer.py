"""Stage extend_tokenizer: the base's tokenizer with the accepted vocabulary added."""

from dataclasses import asdict
from pathlib import Path

from tasks._base import find_base
from tasks._stage import run_stage
from vocabgraft.accepted_data import read_contexts, read_datasets, read_new_tokens, training_texts
from vocabgraft.artifacts import new_folder, write_json
from vocabgraft.base_model import tokenizer_file
from vocabgraft.params import ExtendTokenizerParams
from vocabgraft.tokenizer import extend_tokenizer as extend
from vocabgraft.tokenizer import load_raw_tokenizer, load_tokenizer, segmentation_report


def extend_tokenizer(
    base_identity: Path, vocabulary: Path, datasets: Path, contexts: Path, out: Path, params: ExtendTokenizerParams
) -> None:
    """Add the accepted tokens; report what that does to the training texts."""
    folder = find_base(base_identity)
    tokenizer = load_tokenizer(folder)
    base_tokenizer = load_raw_tokenizer(tokenizer_file(folder))
    tokens = extend(tokenizer, base_tokenizer, read_new_tokens(vocabulary), params.max_token_characters)
    texts = training_texts(read_datasets(datasets), read_contexts(contexts))
    report = segmentation_report(base_tokenizer, tokenizer, tokens, texts)
    with new_folder(out) as work:
        tokenizer.save_pretrained(work / "tokenizer")
        write_json(work / "tokens.json", [token.as_json() for token in tokens])
        write_json(work / "report.json", asdict(report))


if __name__ == "__main__":
    raise SystemExit(run_stage(extend_tokenizer))
