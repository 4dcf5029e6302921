"""Extends a tokenizer: which words can be added, how they match, and which texts contain a new token."""

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
# Not Korean, which separates words with spaces.
WITHOUT_SPACES = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30fa\u30fc-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
# A space that Metaspace or a byte-level pre-tokenizer kept as a separate token.
SPACES = frozenset({"\u2581", "\u0120"})
SHOWN_TOKENS = 10


@dataclass(frozen=True)
class ExtendedToken:
    """A token whose row trains: its id, and the base's ids of its text and of its description.

    A token that an earlier run added and that trains again is initialized from its own row: both lists hold its own id.
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
        """The token as it was requested."""
        return NewToken(self.text, self.kind, self.description)

    @property
    def retrained(self) -> bool:
        """Whether an earlier run added the token, so that the base already reads it as this single id."""
        return self.pieces == (self.id,)


def load_raw_tokenizer(path: Path) -> "Tokenizer":
    """The Rust tokenizer of a `tokenizer.json`, without the padding and truncation that the file may define."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise VocabgraftError(f"{path} is damaged or incomplete ({error}); restore the model") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> "PreTrainedTokenizerFast":
    """The fast tokenizer of a model or tokenizer folder, from disk only; its code runs only if it is trusted."""
    from transformers import AutoTokenizer

    try:
        # Without the argument, transformers asks on the terminal whether to run the code of a folder.
        options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        return AutoTokenizer.from_pretrained(str(folder), **options)
    except (OSError, ValueError) as error:
        raise VocabgraftError(f"{folder} does not load as a tokenizer: {error}") from error


def load_base_tokenizer(folder: Path, trust_remote_code: bool = False) -> "Tokenizer":
    """The Rust tokenizer of the model in a folder, without padding and truncation.

    It may differ from the folder's `tokenizer.json`: transformers gives some classes, such as XLM-R's, another
    pre-tokenizer and normalizer.

    Raises:
        VocabgraftError: if it does not load or is not a fast tokenizer, or if the model lower-cases texts and its
            tokenizer does not.
    """
    if not (folder / "tokenizer.json").is_file():
        raise VocabgraftError(
            f"{folder} has no tokenizer.json; save the model once with current transformers (a fast tokenizer)"
        )
    plain = _without_limits(load_tokenizer(folder, trust_remote_code))
    _require_lower_case(folder, plain)
    return plain


def _require_lower_case(folder: Path, tokenizer: "Tokenizer") -> None:
    settings = folder / "sentence_bert_config.json"
    asked = settings.is_file() and bool(read_json(settings).get("do_lower_case"))
    if asked and normalised(tokenizer, "A") != normalised(tokenizer, "a"):
        raise VocabgraftError(
            f"{settings} has do_lower_case: true, but tokenizer.json beside it keeps capital letters, so the two read "
            "texts differently and a new word with a capital letter would never match. Load the model with "
            "sentence-transformers and save it once, which writes the lower-casing into tokenizer.json: "
            "SentenceTransformer(FOLDER).save(NEW_FOLDER)"
        )


def _without_limits(tokenizer: "PreTrainedTokenizerFast") -> "Tokenizer":
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise VocabgraftError(
            f"the base's tokenizer is a {type(tokenizer).__name__}, which is not a fast tokenizer; save the model once "
            "with a current version of transformers"
        )
    plain = Tokenizer.from_str(backend.to_str())
    plain.no_padding()
    plain.no_truncation()
    return plain


def normalised(tokenizer: "Tokenizer", text: str) -> str:
    """The text after the base's normalizer, against which words are matched."""
    return str(tokenizer.normalizer.normalize_str(text)) if tokenizer.normalizer is not None else text


def pieces_of(tokenizer: "Tokenizer", text: str) -> tuple[int, ...]:
    """The base's ids of a text on its own, without special tokens."""
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


def own_pieces(base: "Tokenizer", token: NewToken) -> tuple[int, ...]:
    """The base's ids of a token's text in its most frequent position.

    A word is read after a space, where a byte-level base uses other subword tokens than at the start of a text. A token
    that is only a space, such as the one that Metaspace puts before a Chinese word, carries no meaning and is left out.
    """
    after_space = token.kind == "word" and not matches_inside(token.text)
    pieces = pieces_of(base, f" {token.text}" if after_space else token.text)
    return tuple(piece for piece in pieces if base.id_to_token(piece) not in SPACES)


def readable(base: "Tokenizer", pieces: Sequence[int]) -> tuple[int, ...]:
    """The ids without those of the unknown token."""
    named = getattr(base.model, "unk_token", None)
    # A Unigram model does not say which of its tokens is the unknown one.
    unknown = {base.token_to_id(name) for name in ([named] if named else ["[UNK]", "<unk>"])}
    return tuple(piece for piece in pieces if piece not in unknown)


def is_one_token(base: "Tokenizer", token: NewToken) -> bool:
    """Whether the base already has one token for it, at the start of a text or after a space."""
    pieces = (own_pieces(base, token), pieces_of(base, token.text))
    return base.token_to_id(token.text) is not None or any(len(readable(base, ids)) == len(ids) == 1 for ids in pieces)


def rewritten(base: "Tokenizer", text: str) -> str | None:
    """The normalized form of an unstable text, which as a special token would match few texts; None if it is stable.

    A special token is matched before the base normalizes, so case, accents and spaces do not matter: an uncased base
    may have `<|IsA|>`. A text is unstable if it has characters that Unicode composes, or that the base removes or
    replaces (a zero-width space, a fullwidth sign): other texts that look the same have other characters.
    """
    if (composed := unicodedata.normalize("NFC", text)) != text:
        return composed
    read = normalised(base, text)
    return read if _bare(read) != _bare(text) else None


def _bare(text: str) -> str:
    """The text without case, accents and spaces."""
    decomposed = unicodedata.normalize("NFD", text.casefold())
    return "".join(sign for sign in decomposed if unicodedata.category(sign) != "Mn" and not sign.isspace()).replace(
        "\u2581", ""
    )


def matches_inside(word: str) -> bool:
    """Whether a word matches inside a run of its script, because the script is written without spaces.

    Its first and last character decide: with a Latin end, `CT` of a mixed Latin and Chinese word would match in `ACT`.
    Such a word can be added as a `symbol`.
    """
    return bool(word) and all(WITHOUT_SPACES.match(sign) for sign in (word[0], word[-1]))


def added_token(token: NewToken) -> "AddedToken":
    """The matching rules of a token, defined only here.

    A `word` matches the normalized text and only whole words: otherwise adding `veh` would turn `vehicles` into
    `veh ic ##les` and change unrelated texts. In a script without spaces it matches anywhere. A `symbol` matches
    anywhere. A `special` token matches the raw text, since an uncased normalizer would make `<|IsA|>` and `<|isa|>`
    equal. No token includes the space beside it, so that the rest of the text keeps its subword tokens.

    Two effects come from the tokenizers library. Metaspace (XLM-R) and byte-level with a prefix space put a space
    before the text that follows any added token; a text without a new token does not change. And of two words that
    begin at the same character the library tries only the longer: once `beta-blocker` is a word too, `beta` is not
    found in `beta-blockers`.
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
    """The tokens that an earlier run or the base's maker added beside the model's own special tokens, by text."""
    return {
        added.content: (token_id, added)
        for token_id, added in sorted(base.get_added_tokens_decoder().items())
        if not added.special
    }


def matched_otherwise(before: Mapping[str, tuple[int, "AddedToken"]], token: NewToken) -> Kind | None:
    """The kind of the base's token with this text if it differs from the requested kind.

    Args:
        before: from `tokens_added_before`.
        token: as the vocabulary defines it.
    """
    found = before.get(token.text)
    if found is None or _matching(found[1]) == _matching(added_token(token)):
        return None
    return "special" if not found[1].normalized else "word" if found[1].single_word else "symbol"


def hidden_by(base: "Tokenizer", added: Iterable["AddedToken"], token: NewToken) -> str | None:
    """A token of the base that a new word would hide in texts that do not contain the word.

    If the longer of two tokens is found but is not a whole word, the library skips its whole span: with `beta-blocker`
    added, `beta` of an earlier run would be lost in `beta-blockers`.

    Args:
        base: its normalizer decides.
        added: all tokens that were ever added to it.
        token: the new token.
    """
    if not added_token(token).single_word:
        return None
    word = normalised(base, token.text)
    parted = not all(_is_part_of_a_word(sign) for sign in word)
    for known in added:
        # No whole word can begin or end inside a word without punctuation.
        if not known.normalized or known.content == token.text or (known.single_word and not parted):
            continue
        if _may_begin_inside(word, normalised(base, known.content), known.single_word):
            return str(known.content)
    return None


def _may_begin_inside(word: str, known: str, whole: bool) -> bool:
    """Whether a text that contains `word`, but not as a whole word, may hold `known` starting inside `word`."""
    for at in range(len(word)):
        end = at + len(known)
        if not (known.startswith(word[at:]) if end > len(word) else word.startswith(known, at)):
            continue
        beside = (word[at - 1] if at else "", word[end : end + 1])
        if not whole or not any(sign and _is_part_of_a_word(sign) for sign in beside):
            return True
    return False


def _is_part_of_a_word(sign: str) -> bool:
    """As in the tokenizers library, where marks and joiners are part of a word too."""
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
    """Add the tokens, in order, to `tokenizer` (changed in place); `base` is the same tokenizer without them.

    Tokens that the base has from an earlier run are kept: adding one again could change how it matches.

    Args:
        tokenizer: the base's, to extend.
        base: the base's, which stays unchanged.
        tokens: the whole vocabulary.
        max_token_characters: longest text of a new token.
        retrain: texts of kept tokens whose rows train again.

    Returns:
        In order of their ids: the kept tokens that train again, with their own id as the only subword token, and the
            new tokens.

    Raises:
        VocabgraftError: when a token cannot be added (too long, known already, collides with another, nothing to
            initialize it from), when `retrain` names a token that is not kept, or when there is nothing to do.
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
        # A last guard: `validate_data` applies the same test to all rows at once.
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
                f"token {token.text!r} got the id {token_id}, which the base or another token already has; keep one "
                "of the two in the vocabulary (a base with gaps in its ids cannot be extended)"
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
            f"extend_tokenizer.retrain lists {unknown[0]!r}, which is not a vocabulary word that the base has from "
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
        added: all tokens that were ever added to it.
        token: a token that the base does not have from an earlier extension.
        max_token_characters: longest text of a new token.
    """
    pieces = own_pieces(base, token)
    starts = readable(base, pieces_of(base, token.description))
    if len(token.text) > max_token_characters:
        problem = (
            f"has {len(token.text)} characters; allowed: {max_token_characters} (extend_tokenizer.max_token_characters)"
        )
    elif not normalised(base, token.text).strip():
        # An empty pattern would split every text at every character.
        problem = "is empty after the base's normalization; take it out of the vocabulary"
    elif is_one_token(base, token):
        problem = "is one token in the base already; take it out of the vocabulary"
    elif token.kind == "special" and (read := rewritten(base, token.text)) is not None:
        problem = f"is a special token that normalization turns into {read!r}; spell it with plain characters"
    elif (hidden := hidden_by(base, added, token)) is not None:
        problem = f"hides the base's {hidden!r} in texts with only a part of the word; make it a symbol or take it out"
    elif not starts and (token.kind == "special" or not readable(base, pieces)):
        problem = f"has no subword token to start from and the description {token.description!r}; describe it in words"
    else:
        return None
    return problem


def _require_one_id_each(tokenizer: "PreTrainedTokenizerFast", tokens: Sequence[ExtendedToken]) -> None:
    """Refuse two tokens with the same normalized text: which of them matches differs between processes."""
    for token in tokens:
        ids = tokenizer(token.text, add_special_tokens=False)["input_ids"]
        if ids != [token.id]:
            raise VocabgraftError(
                f"token {token.text!r} has the id {token.id}, but is read as {ids}: it collides with another token, "
                "which has the same normalized text; keep one of them in the vocabulary"
            )


def new_ids_in(encoded: Iterable[Sequence[int]], new_ids: Iterable[int]) -> Iterator[frozenset[int]]:
    """The new ids among the ids of each text.

    A text holds a new word if the set is not empty: the extended tokenizer emits at least one new id for it. Words,
    symbols and special tokens count alike. Every count and every subset "with a new word" uses this function.

    Args:
        encoded: the ids of each text, from the extended tokenizer.
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
    """The tokens that the base does not have already."""
    return [token for token in tokens if not token.retrained]


def raw_tokenizer(model: "SentenceTransformer") -> "Tokenizer":
    """A copy of the tokenizer as the model loaded it, which may differ from the file (`do_lower_case`)."""
    return _without_limits(model.tokenizer)
