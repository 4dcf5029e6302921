"""Graft new words onto a sentence-embedding model, and prove that nothing else changed.

    import vocabgraft as vg

    model = vg.extend(base, ["nephrolithiasis"], texts=sentences)
    vg.train(model, train_dataset, num_train_epochs=2)
    vg.check(model, base=base).raise_for_failures()
    model.save_pretrained("clinical-minilm")

Names are imported when they are first used, so `import vocabgraft` loads neither torch nor sentence-transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vocabgraft.api.check import CheckReport as CheckReport
    from vocabgraft.api.check import FailedChecksError as FailedChecksError
    from vocabgraft.api.check import check as check
    from vocabgraft.api.extend import distill as distill
    from vocabgraft.api.extend import extend as extend
    from vocabgraft.api.plan import plan_vocabulary as plan_vocabulary
    from vocabgraft.api.report import VocabularyReport as VocabularyReport
    from vocabgraft.api.train import merge as merge
    from vocabgraft.api.train import train as train
    from vocabgraft.api.trainer import VocabularyTrainer as VocabularyTrainer
    from vocabgraft.api.trainer import VocabularyTrainingArguments as VocabularyTrainingArguments
    from vocabgraft.errors import VocabgraftError as VocabgraftError
    from vocabgraft.export.encoder import OnnxEncoder as OnnxEncoder
    from vocabgraft.export.to_onnx import export_onnx as export_onnx
    from vocabgraft.index.model_diff import compare_models as compare_models
    from vocabgraft.index.reembed import updated_vectors as updated_vectors
    from vocabgraft.packs.bank import VocabularyBank as VocabularyBank
    from vocabgraft.packs.vocabulary_pack import VocabularyPack as VocabularyPack
    from vocabgraft.tokens.new_token import NewToken as NewToken
    from vocabgraft.training.fit import TrainingResult as TrainingResult
    from vocabgraft.triples.link_prediction import LinkPredictionEvaluator as LinkPredictionEvaluator
    from vocabgraft.triples.losses import TranslationLoss as TranslationLoss
    from vocabgraft.triples.losses import TranslationRankingLoss as TranslationRankingLoss

_MODULES = {
    "CheckReport": "api.check",
    "FailedChecksError": "api.check",
    "LinkPredictionEvaluator": "triples.link_prediction",
    "NewToken": "tokens.new_token",
    "OnnxEncoder": "export.encoder",
    "TrainingResult": "training.fit",
    "TranslationLoss": "triples.losses",
    "TranslationRankingLoss": "triples.losses",
    "VocabgraftError": "errors",
    "VocabularyBank": "packs.bank",
    "VocabularyPack": "packs.vocabulary_pack",
    "VocabularyReport": "api.report",
    "VocabularyTrainer": "api.trainer",
    "VocabularyTrainingArguments": "api.trainer",
    "check": "api.check",
    "compare_models": "index.model_diff",
    "distill": "api.extend",
    "export_onnx": "export.to_onnx",
    "extend": "api.extend",
    "merge": "api.train",
    "plan_vocabulary": "api.plan",
    "train": "api.train",
    "updated_vectors": "index.reembed",
}
__all__ = [*_MODULES, "__version__"]  # noqa: PLE0604  # the keys are strings


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vocabgraft")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
