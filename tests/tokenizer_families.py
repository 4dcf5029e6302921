"""Small real tokenizers of every family in use, built in code."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.conftest import LETTERS, WORDS, build_wordpiece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CORPUS = [f"The {first} of a {second}, {third}-like." for first, second, third in zip(WORDS, WORDS[5:], WORDS[9:])]  # noqa: B905
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def build_wordpiece_cased() -> Any:
    """As BERT cased: capital letters are pieces of their own, accents stay."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    letters = [*LETTERS, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "\u00e9"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys([*WORDS, "The", "Heart", *letters])]
    vocabulary += [f"##{letter}" for letter in letters if letter.isalnum()]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


def build_byte_level(prefix_space: bool, normaliser: Any = None, split: Any = None) -> Any:
    """Byte-level BPE, trained on a few sentences, so that words have pieces with and without a space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if normaliser is not None:
        tokenizer.normalizer = normaliser
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=split is None)
    tokenizer.pre_tokenizer = level if split is None else pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def build_roberta() -> Any:
    """No normaliser, no prefix space."""
    return build_byte_level(prefix_space=False)


def build_prefixed_byte_level() -> Any:
    """With a space put before the text."""
    return build_byte_level(prefix_space=True)


def build_modernbert() -> Any:
    """Normal form C, as ModernBERT."""
    from tokenizers import normalizers

    return build_byte_level(prefix_space=False, normaliser=normalizers.NFC())


def build_qwen() -> Any:
    """Normal form C, and a regular expression of its own that parts digits and keeps apostrophes with what follows."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    words += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(words), behavior="isolated")
    return build_byte_level(prefix_space=False, normaliser=normalizers.NFC(), split=split)


def build_unigram() -> Any:
    """Unigram with Metaspace and a normaliser that composes and folds compatible signs, as XLM-R."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces = [(text, 0.0) for text in SPECIAL]
    pieces += [(f"\u2581{word}", -6.0) for word in dict.fromkeys(WORDS) if len(word) > 1]
    pieces += [("\u2581", -4.0), *((letter, -9.0) for letter in [*LETTERS, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "\u4e2d"])]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    normaliser = [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(normaliser)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


FAMILIES: dict[str, Callable[[], Any]] = {
    "wordpiece uncased": build_wordpiece,
    "wordpiece cased": build_wordpiece_cased,
    "roberta": build_roberta,
    "byte-level with a prefix space": build_prefixed_byte_level,
    "modernbert": build_modernbert,
    "qwen": build_qwen,
    "unigram": build_unigram,
}


def as_fast(tokenizer: Any) -> "PreTrainedTokenizerFast":
    """A tokenizer of its own for transformers."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.to_str()))
