"""Tiny models of several architectures, tokenizers and poolings, for exports."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.tokenizer_families import build_roberta, build_unigram

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
LONGEST = 40


def build_bpe(folder: Path) -> Path:
    """RoBERTa with byte-level BPE, pooled by the first token, without Normalize."""
    from transformers import RobertaConfig, RobertaModel

    return _save(folder, build_roberta(), RobertaConfig, RobertaModel, "cls", normalize=False)


def build_last_token(folder: Path) -> Path:
    """XLM-RoBERTa with Unigram, pooled by the last token, padded on the left, normalized."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    return _save(folder, build_unigram(), XLMRobertaConfig, XLMRobertaModel, "lasttoken", padding_side="left")


def _save(
    folder: Path, raw: Any, config: Any, kind: Any, pooling: str, normalize: bool = True, padding_side: str = "right"
) -> Path:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    raw.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    named = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "cls_token": "<s>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, model_max_length=LONGEST, padding_side=padding_side, sep_token="</s>", **named
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config(vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=1, **SIZES))
    parts = folder.parent / f"{folder.name}-transformer"
    model.save_pretrained(parts)
    tokenizer.save_pretrained(parts)
    modules = [Transformer(str(parts)), Pooling(SIZES["hidden_size"], pooling), *([Normalize()] if normalize else [])]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    return folder


def with_layers(model: "SentenceTransformer") -> "SentenceTransformer":
    """The model with a Dense on token embeddings and one on the pooled embedding."""
    from vocabgraft.config.stages import ModuleParams
    from vocabgraft.models.extra_modules import insert_modules

    before = {"type": "Dense", "place": "before_pooling", "arguments": {"out_features": 24}}
    after = {"type": "Dense", "place": "after_pooling", "arguments": {"out_features": 16}}
    insert_modules(model, [ModuleParams.model_validate(entry) for entry in (before, after)], seed=1)
    return model
