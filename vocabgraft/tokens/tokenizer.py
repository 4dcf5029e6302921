"""Extends a tokenizer: which words may be added, how they match, and which texts contain a new token."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import read_json, require_artifact
from vocabgraft.tokens.new_token import Kind, NewToken

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

# Thai, Lao, Tibetan, Myanmar, Khmer; Chinese and Japanese with their iteration marks, Bopomofo, halfwidth Katakana.
# Not Korean, which puts spaces between words.
WITHOUT_SPACES = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30fa\u30fc-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
# A space that Metaspace or a byte-level pre-tokenizer kept as a piece of its own.
SPACES = frozenset({"\u2581", "\u0120"})
SHOWN_TOKENS = 10


@dataclass(frozen=True)
class ExtendedToken:
    """A token whose row is trained: its id, and the base's ids of its text and of its description.

    The row of one that an earlier run added, and that is to train again, starts from itself: both are its own id.
    """

    text: str
    kind: Kind
    description: str
    id: int
    pieces: tuple[int, ...]
    description_pieces: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """The token as a mapping for `tokens.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "ExtendedToken":
        """The inverse of `as_json`."""
        pieces, described = tuple(entry["pieces"]), tuple(entry["description_pieces"])
        return cls(entry["text"], entry["kind"], entry["description"], entry["id"], pieces, described)

    @property
    def new_token(self) -> NewToken:
        """The token as it was asked for."""
        return NewToken(self.text, self.kind, self.description)

    @property
    def retrained(self) -> bool:
        """Whether an earlier run added it, so that the base reads it as this one id already."""
        return self.pieces == (self.id,)


def load_raw_tokenizer(path: Path) -> "Tokenizer":
    """The Rust tokenizer of a `tokenizer.json`, without the padding and truncation that the file may ask for."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise VocabgraftError(f"{path} is damaged or incomplete ({error}); restore the model") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> "PreTrainedTokenizerFast":
    """The fast tokenizer of a model or tokenizer folder, from disk alone; code in it runs where it is trusted."""
    from transformers import AutoTokenizer

    try:
        # Left unsaid, transformers asks on the terminal whether to run the code of a folder.
        options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        return AutoTokenizer.from_pretrained(str(folder), **options)
    except (OSError, ValueError) as error:
        raise VocabgraftError(f"{folder} does not load as a tokenizer: {error}") from error


def load_base_tokenizer(folder: Path, trust_remote_code: bool = False) -> "Tokenizer":
    """The Rust tokenizer that the model in a folder uses, without padding and truncation.

    It is not always that of the folder's `tokenizer.json`: transformers gives some classes, such as XLM-R's, a
    pre-tokenizer and a normalizer of its own.

    Raises:
        VocabgraftError: if it does not load or is no fast tokenizer, or if the model lower-cases texts and its
            tokenizer does not.
    """
    if not (folder / "tokenizer.json").is_file():
        raise VocabgraftError(
            f"{folder} has no tokenizer.json; save the model once with today's transformers (a fast tokenizer)"
        )
    plain = _without_limits(load_tokenizer(folder, trust_remote_code))
    _require_lower_case(folder, plain)
    return plain


def _require_lower_case(folder: Path, tokenizer: "Tokenizer") -> None:
    settings = folder / "sentence_bert_config.json"
    asked = settings.is_file() and bool(read_json(settings).get("do_lower_case"))
    if asked and normalised(tokenizer, "A") != normalised(tokenizer, "a"):
        raise VocabgraftError(
            f"{settings} has do_lower_case: true, and tokenizer.json beside it keeps capital letters, so the two read "
            "texts differently and a new word with a capital letter would never match. Load the model with "
            "sentence-transformers and save it once, which writes the lower-casing into tokenizer.json: "
            "SentenceTransformer(FOLDER).save(NEW_FOLDER)"
        )


def _without_limits(tokenizer: "PreTrainedTokenizerFast") -> "Tokenizer":
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise VocabgraftError(
            f"the base's tokenizer is a {type(tokenizer).__name__}, which is no fast tokenizer; save the model once "
            "with today's transformers"
        )
    plain = Tokenizer.from_str(backend.to_str())
    plain.no_padding()
    plain.no_truncation()
    return plain


def normalised(tokenizer: "Tokenizer", text: str) -> str:
    """The text as the base's normaliser leaves it, which is what a word is matched against."""
    return str(tokenizer.normalizer.normalize_str(text)) if tokenizer.normalizer is not None else text


def pieces_of(tokenizer: "Tokenizer", text: str) -> tuple[int, ...]:
    """The base's ids of a text standing alone, without special tokens."""
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


def own_pieces(base: "Tokenizer", token: NewToken) -> tuple[int, ...]:
    """The base's ids that a token stands for, where it is most often met.

    A word is read after a space, where a byte-level base has other pieces than at the start of a text. A piece that is
    a space alone, such as the one that Metaspace puts before a Chinese word, says nothing of the token and is left out.
    """
    after_space = token.kind == "word" and not matches_inside(token.text)
    pieces = pieces_of(base, f" {token.text}" if after_space else token.text)
    return tuple(piece for piece in pieces if base.id_to_token(piece) not in SPACES)


def readable(base: "Tokenizer", pieces: Sequence[int]) -> tuple[int, ...]:
    """The pieces without those that stand for what the base cannot read."""
    named = getattr(base.model, "unk_token", None)
    # A Unigram model does not tell which of its pieces is the unknown one.
    unknown = {base.token_to_id(name) for name in ([named] if named else ["[UNK]", "<unk>"])}
    return tuple(piece for piece in pieces if piece not in unknown)


def is_one_token(base: "Tokenizer", token: NewToken) -> bool:
    """Whether the base has a token for it already, at the start of a text or after a space."""
    pieces = (own_pieces(base, token), pieces_of(base, token.text))
    return base.token_to_id(token.text) is not None or any(len(readable(base, ids)) == len(ids) == 1 for ids in pieces)


def rewritten(base: "Tokenizer", text: str) -> str | None:
    """What a text becomes where it is not stable, so that a special token of that text would be met in few texts.

    A special token is matched before the base normalises, so case, accents and spaces do not matter: an uncased base
    may have `<|IsA|>`. But characters that Unicode composes, or that the base takes out or replaces (a zero-width
    space, a fullwidth sign), look like others and are written in more than one way.
    """
    if (composed := unicodedata.normalize("NFC", text)) != text:
        return composed
    read = normalised(base, text)
    return read if _bare(read) != _bare(text) else None


def _bare(text: str) -> str:
    """Without case, accents and spaces."""
    decomposed = unicodedata.normalize("NFD", text.casefold())
    return "".join(sign for sign in decomposed if unicodedata.category(sign) != "Mn" and not sign.isspace()).replace(
        "\u2581", ""
    )


def matches_inside(word: str) -> bool:
    """Whether a word is matched inside a text of its script, since that is written without spaces.

    Its first and its last character decide: at a Latin end, `CT` of a word of Latin and Chinese would match in `ACT`.
    Such a word is a `symbol` for who wants it.
    """
    return bool(word) and all(WITHOUT_SPACES.match(sign) for sign in (word[0], word[-1]))


def added_token(token: NewToken) -> "AddedToken":
    """How a token matches; the one place that says it.

    A `word` matches the normalised text and whole words only: without that, adding `veh` would turn `vehicles` into
    `veh ic ##les` and change texts that have nothing to do with it. In a script without spaces it matches anywhere. A
    `symbol` matches anywhere. A `special` token matches the raw text, since an uncased normaliser would make `<|IsA|>`
    and `<|isa|>` one. None takes the space beside it, so that the rest of the text keeps its pieces.

    Two things are the library's own. Metaspace (XLM-R) and byte-level with a prefix space put a space before what
    follows an added token, as before what follows one of the base's own; a text without a new token is not concerned.
    And of two words that begin at one place only the longer is tried: `beta` is not found in `beta-blockers` once
    `beta-blocker` is a word too.
    """
    from tokenizers import AddedToken

    return AddedToken(
        token.text,
        single_word=token.kind == "word" and not matches_inside(token.text),
        lstrip=False,
        rstrip=False,
        normalized=token.kind != "special",
        special=False,
    )


def tokens_added_before(base: "Tokenizer") -> dict[str, tuple[int, "AddedToken"]]:
    """The tokens that an earlier run, or the base's maker, added beside the model's own special ones, by their text."""
    return {
        added.content: (token_id, added)
        for token_id, added in sorted(base.get_added_tokens_decoder().items())
        if not added.special
    }


def matched_otherwise(before: Mapping[str, tuple[int, "AddedToken"]], token: NewToken) -> Kind | None:
    """The kind as which a base has a token of this text, when that is another than asked for.

    Args:
        before: of `tokens_added_before`.
        token: as the vocabulary asks for it.
    """
    found = before.get(token.text)
    if found is None or _matching(found[1]) == _matching(added_token(token)):
        return None
    return "special" if not found[1].normalized else "word" if found[1].single_word else "symbol"


def hidden_by(base: "Tokenizer", added: Iterable["AddedToken"], token: NewToken) -> str | None:
    """A token of the base that a new word would hide in texts that do not hold the word.

    Where the longer of two tokens is met but not whole, the library looks no further in what it spans: with
    `beta-blocker` added, `beta` of an earlier run would be lost in `beta-blockers`.

    Args:
        base: whose normalisation decides.
        added: all that was ever added to it.
        token: the new one.
    """
    if not added_token(token).single_word:
        return None
    word = normalised(base, token.text)
    parted = not all(_is_part_of_a_word(sign) for sign in word)
    for known in added:
        # Inside a word without punctuation no whole word can begin or end.
        if not known.normalized or known.content == token.text or (known.single_word and not parted):
            continue
        if _may_begin_inside(word, normalised(base, known.content), known.single_word):
            return str(known.content)
    return None


def _may_begin_inside(word: str, known: str, whole: bool) -> bool:
    """Whether a text with `word` in it, but not whole, may hold `known`, begun inside `word`."""
    for at in range(len(word)):
        end = at + len(known)
        if not (known.startswith(word[at:]) if end > len(word) else word.startswith(known, at)):
            continue
        beside = (word[at - 1] if at else "", word[end : end + 1])
        if not whole or not any(sign and _is_part_of_a_word(sign) for sign in beside):
            return True
    return False


def _is_part_of_a_word(sign: str) -> bool:
    """As the library has it, to which marks and joiners are parts too."""
    return sign.isalnum() or unicodedata.category(sign) in ("Mn", "Mc", "Me", "Pc") or sign in "\u200c\u200d"


def _matching(added: "AddedToken") -> tuple[bool, bool]:
    return added.single_word, added.normalized


def extend_tokenizer(
    tokenizer: "PreTrainedTokenizerFast",
    base: "Tokenizer",
    tokens: Sequence[NewToken],
    max_token_characters: int,
    retrain: Sequence[str] = (),
) -> list[ExtendedToken]:
    """Add the tokens, in order, to `tokenizer` (changed in place); `base` is the same tokenizer, not extended.

    Tokens that the base has from an earlier run are kept as they are. Adding one again could change how it matches.

    Args:
        tokenizer: the base's, to be extended.
        base: the base's, as it stays.
        tokens: the whole vocabulary.
        max_token_characters: longest text of a new token.
        retrain: texts of kept tokens whose rows train again.

    Returns:
        In order of their ids: the kept tokens to train again, with their own id as their one piece, and the new ones.

    Raises:
        VocabgraftError: when a token cannot be one (too long, known already, colliding with another, nothing to start
            from), when `retrain` names one that is not kept, or when nothing is new and nothing trains again.
    """
    before = tokens_added_before(base)
    kept = [token for token in tokens if token.text in before]
    new = [token for token in tokens if token.text not in before]
    again = _chosen_again(kept, retrain)
    if not new and not again:
        raise VocabgraftError(
            f"all {len(tokens)} words of the vocabulary are in the base already, so there is nothing to add or train; "
            "add new words, list some of them in extend_tokenizer.retrain, or set base.model to a base without them"
        )
    for token in kept:
        _require_same_matching(before, token)
    added = list(base.get_added_tokens_decoder().values())
    for token in new:
        # The last guard: `validate_data` judges the same of every row at once.
        if (reason := why_not_addable(base, added, token, max_token_characters)) is not None:
            raise VocabgraftError(f"token {token.text!r} {reason}")
    tokenizer.add_tokens([added_token(token) for token in new])
    own = {token.text: (before[token.text][0],) for token in again}
    result = [ExtendedToken(t.text, t.kind, t.description, own[t.text][0], own[t.text], own[t.text]) for t in again]
    known = set(base.get_vocab().values())
    for token in new:
        token_id = tokenizer.convert_tokens_to_ids(token.text)
        if token_id in known:
            raise VocabgraftError(
                f"token {token.text!r} got the id {token_id}, which the base or another token has; it collides with "
                "it, so keep one of them in the vocabulary (a base whose ids have holes cannot be extended)"
            )
        known.add(token_id)
        described = pieces_of(base, token.description)
        result.append(
            ExtendedToken(token.text, token.kind, token.description, token_id, own_pieces(base, token), described)
        )
    _require_one_id_each(tokenizer, result)
    return sorted(result, key=lambda token: token.id)


def _chosen_again(kept: Sequence[NewToken], retrain: Sequence[str]) -> list[NewToken]:
    allowed = [token.text for token in kept]
    if unknown := sorted(set(retrain) - set(allowed)):
        more = f" and {len(allowed) - SHOWN_TOKENS} more" if len(allowed) > SHOWN_TOKENS else ""
        named = ", ".join(allowed[:SHOWN_TOKENS]) + more if allowed else "none, since all its words are new"
        raise VocabgraftError(
            f"extend_tokenizer.retrain lists {unknown[0]!r}, which is no word of the vocabulary that the base has from "
            f"an earlier run; allowed: {named}; take it out"
        )
    return [token for token in kept if token.text in set(retrain)]


def _require_same_matching(before: Mapping[str, tuple[int, "AddedToken"]], token: NewToken) -> None:
    if kind := matched_otherwise(before, token):
        raise VocabgraftError(
            f"token {token.text!r} is of kind {token.kind}, but the base has it as {kind}; make that its kind, or take "
            "it out of the vocabulary"
        )


def why_not_addable(
    base: "Tokenizer", added: Sequence["AddedToken"], token: NewToken, max_token_characters: int
) -> str | None:
    """The reason why a token cannot be added to a base, with the remedy, as a clause after `token ...`; None if it can.

    Args:
        base: the base's tokenizer.
        added: the tokens that were ever added to it.
        token: one that the base does not have from an earlier extension.
        max_token_characters: longest text of a new token.
    """
    pieces = own_pieces(base, token)
    starts = readable(base, pieces_of(base, token.description))
    if len(token.text) > max_token_characters:
        problem = (
            f"has {len(token.text)} characters; allowed: {max_token_characters} (extend_tokenizer.max_token_characters)"
        )
    elif not normalised(base, token.text).strip():
        # A pattern of nothing would cut every text at every character.
        problem = "is nothing after the base's normalisation; take it out of the vocabulary"
    elif is_one_token(base, token):
        problem = "is one token in the base already; take it out of the vocabulary"
    elif token.kind == "special" and (read := rewritten(base, token.text)) is not None:
        problem = f"is a special token that normalisation makes {read!r}; spell it with plain characters"
    elif (hidden := hidden_by(base, added, token)) is not None:
        problem = f"hides {hidden!r} of the base in texts that hold it in part; make it a symbol or take it out"
    elif not starts and (token.kind == "special" or not readable(base, pieces)):
        problem = f"has no piece to start from and the description {token.description!r}; describe it in words"
    else:
        return None
    return problem


def _require_one_id_each(tokenizer: "PreTrainedTokenizerFast", tokens: Sequence[ExtendedToken]) -> None:
    """Refuse two tokens that normalise to one text: which of them matches it differs from process to process."""
    for token in tokens:
        ids = tokenizer(token.text, add_special_tokens=False)["input_ids"]
        if ids != [token.id]:
            raise VocabgraftError(
                f"token {token.text!r} has the id {token.id}, but is read as {ids}: it collides with another token, "
                "which the base's normalisation makes the same; keep one of them in the vocabulary"
            )


def new_ids_in(encoded: Iterable[Sequence[int]], new_ids: Iterable[int]) -> Iterator[frozenset[int]]:
    """The new ids among the ids of each text.

    A text holds a new word where this is not empty: the extended tokenizer emits at least one new id for it. Words,
    symbols and special tokens count alike. Every count and every subset "with a new word" comes from here.

    Args:
        encoded: the ids of each text, by the extended tokenizer.
        new_ids: the ids of the tokens whose rows train.
    """
    new = frozenset(new_ids)
    return (new.intersection(ids) for ids in encoded)


def holds_new_token(
    tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str], new_ids: Iterable[int]
) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Whether each text holds a new word (`new_ids_in`): bool array of shape (texts,)."""
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    return np.array([bool(found) for found in new_ids_in(encoded, new_ids)], dtype=bool)


def read_tokens(path: Path) -> list[ExtendedToken]:
    """The tokens whose rows train, from the `tokens.json` of `extend_tokenizer`, in order of their ids."""
    return [ExtendedToken.from_json(entry) for entry in read_json(require_artifact(path))]


def added_tokens(tokens: Sequence[ExtendedToken]) -> list[ExtendedToken]:
    """Those that the base does not have as a token already."""
    return [token for token in tokens if not token.retrained]


def raw_tokenizer(model: "SentenceTransformer") -> "Tokenizer":
    """A copy of the tokenizer as the model has it loaded, which may differ from the file (`do_lower_case`)."""
    return _without_limits(model.tokenizer)
