"""`vg.extend` adds words to a model in memory; `vg.distill` distills the rows of its new tokens again."""

import copy
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vocabgraft.api.report import ATTRIBUTE, ids_of, make_report, report_of
from vocabgraft.api.words import Words, addable, as_new_tokens, require_addable
from vocabgraft.config.stages import DistillationParams, ResizeBaseParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import REGISTRY_PREFIX, load_model, locate_base
from vocabgraft.models.gate import is_gated
from vocabgraft.models.resize import extended_copy
from vocabgraft.token_embeddings.build import rows_of_model
from vocabgraft.token_embeddings.distill import RARE_TEXTS, choose_contexts, distil
from vocabgraft.tokens.segmentation import segmentation_report
from vocabgraft.tokens.tokenizer import extend_tokenizer, holds_new_token, raw_tokenizer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MAX_TOKEN_CHARACTERS = 64
# Texts kept for `check`, which reads at most 256 of each kind.
PROBE_TEXTS = 2_000
SEED = 17


def resolve_model(
    model: "SentenceTransformer | str | Path", revision: str | None = None, trust_remote_code: bool = False
) -> "SentenceTransformer":
    """A loaded model unchanged, or the model of a folder, of `package:MODULE/FOLDER` or of a Hub id.

    Raises:
        VocabgraftError: when it is missing, does not load, or does not begin with a Transformer with a fast tokenizer.
    """
    if isinstance(model, (str, Path)):
        if str(model).startswith(REGISTRY_PREFIX):
            raise VocabgraftError(
                f"{str(model)!r} is in a model registry, which this library does not read; load it with "
                "mlflow.sentence_transformers.load_model and pass the loaded model"
            )
        folder = locate_base(str(model), revision, trust_remote_code)
        model = load_model(folder, trust_remote_code=trust_remote_code)
    if is_gated(model):
        raise VocabgraftError(
            "the model has a gate (method gated), which new words would not open; extend the model's base instead"
        )
    transformer = getattr(model[0], "auto_model", None)
    if transformer is None or not getattr(model.tokenizer, "is_fast", False):
        raise VocabgraftError(
            f"the first module of the model is a {type(model[0]).__name__}; "
            "allowed: a Transformer with a fast tokenizer"
        )
    return model


def extend(
    base: "SentenceTransformer | str | Path",
    words: Words,
    *,
    texts: Sequence[str] = (),
    initialization: str = "distillation",
    distillation: DistillationParams | Mapping[str, Any] | None = None,
    on_invalid: str = "fail",
    max_token_characters: int = MAX_TOKEN_CHARACTERS,
    seed: int = SEED,
    trust_remote_code: bool = False,
) -> "SentenceTransformer":
    """Extend a model by words: each becomes one token, initialized from what the base knows.

    Args:
        base: a loaded SentenceTransformer, which is not changed, or a folder, `package:MODULE/FOLDER` or Hub id.
        words: texts, `NewToken`s, or a mapping from each word to its description. `<|X|>` is a special token and needs
            a description; a text without letter and digit is a symbol; any other text matches as a whole word.
        texts: sentences that use the words; more of them give a higher fidelity. Without any, plain templates such as
            "about {word}" are used.
        initialization: `distillation`, `subword_mean`, `description_mean`, `similar_tokens`, `vocabulary_mean` or
            `random_normal`.
        distillation: settings that differ from the defaults of `DistillationParams`, such as `{"epochs": 4}`.
        on_invalid: `fail` refuses the list if a word cannot be added; `skip` leaves out such words and reports them.
        max_token_characters: longest text of a new token.
        seed: of the random numbers. The global random generators are neither read nor changed.
        trust_remote_code: run code in the folder of `base`.

    Returns:
        A new SentenceTransformer without any class of this library. `model.vocabulary_report` (VocabularyReport) has
        the fidelity, the words with low fidelity, the rows that were reset, and the words that were skipped. The report
        is not saved with the model.

    Raises:
        VocabgraftError: for words that cannot be added, or if no text in `texts` holds one of them.
    """
    settings = _settings(initialization, distillation)
    model = resolve_model(base, trust_remote_code=trust_remote_code)
    if getattr(model[0].auto_model, "peft_config", None):
        raise VocabgraftError("the base has a PEFT adapter; merge it first: vocabgraft.merge(base)")
    plain = raw_tokenizer(model)
    wanted, skipped = addable(plain, as_new_tokens(words), max_token_characters)
    require_addable(wanted, skipped, on_invalid)
    tokenizer = copy.deepcopy(model.tokenizer)
    tokens = extend_tokenizer(tokenizer, plain, wanted, max_token_characters)
    texts = list(texts)
    if texts and not holds_new_token(tokenizer, texts, [token.id for token in tokens]).any():
        raise VocabgraftError(
            f"none of the {len(texts)} texts holds a new word; give sentences that use them, or no texts at all for "
            "templates"
        )
    rows, figures = rows_of_model(model, tokenizer, tokens, texts or [token.text for token in tokens], settings, seed)
    segmentation = segmentation_report(plain, tokenizer, tokens, texts)
    # A real copy: `extended_copy` shares the weights of the base, which training would change.
    extended = copy.deepcopy(extended_copy(model, tokenizer, rows))
    extended.eval()
    probes = tuple(islice(texts, PROBE_TEXTS))
    report = make_report(tokens, skipped, initialization, figures, segmentation, rows.clone(), probes)
    setattr(extended, ATTRIBUTE, report)
    return extended


def distill(
    model: "SentenceTransformer",
    base: "SentenceTransformer | str | Path",
    texts: Sequence[str],
    *,
    distillation: DistillationParams | Mapping[str, Any] | None = None,
    seed: int = SEED,
) -> dict[str, Any]:
    """Move the rows of the new tokens until `model` embeds texts as `base` does with its own subword tokens.

    `extend` does this once; call it again with more texts.

    Args:
        model: made by `extend`; the rows of its new tokens are changed in place.
        base: the model that it extends.
        texts: sentences that use the new words.
        distillation: as in `extend`.
        seed: of the order of the batches.

    Returns:
        The metrics of the distillation: `before` and `after` (fidelity), `by_token`, `under_limit`, `set_back`.

    Raises:
        VocabgraftError: for a model that `extend` did not make.
    """
    ids_of(model, None)
    report = report_of(model)
    assert report is not None, "ids_of refuses a model without a report"
    settings = _settings("distillation", distillation).distillation
    teacher = resolve_model(base)
    unknown = teacher.tokenizer.unk_token_id
    contexts = choose_contexts(
        list(texts), model.tokenizer, report.tokens, settings.contexts_per_token, unknown, RARE_TEXTS
    )
    return distil(model, teacher, contexts, report.tokens, settings, seed)


def _settings(initialization: str, distillation: DistillationParams | Mapping[str, Any] | None) -> ResizeBaseParams:
    try:
        given = DistillationParams.model_validate(distillation if distillation is not None else {})
        return ResizeBaseParams.model_validate({"initialisation": initialization, "distillation": given})
    except ValidationError as error:
        raise refused("extend", error) from error


def refused(place: str, error: ValidationError) -> VocabgraftError:
    """The refused settings, each with the value seen and the reason."""
    problems = [
        f"{'.'.join(map(str, entry['loc'])) or 'settings'}: {entry['msg']} (seen: {entry['input']!r})"
        for entry in error.errors()
    ]
    return VocabgraftError(f"{place}: {'; '.join(problems)}")
