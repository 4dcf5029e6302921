"""Transfers a pack to another base: the same tokens with new rows.

Rows mean nothing over another base. With only the pack's texts, `distillation` trains each row until the new base
embeds a text as with its old subword tokens; what training taught the rows is lost. With the pack's own base there are
methods that keep it, as far as the two embedding spaces agree: `source_distillation` trains rows towards the new base's
own embeddings, moved as the training moved these texts; `matching_pursuit` and `least_squares` use the position of the
rows among rows of tokens that both bases have.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from vocabgraft.config.stages import DistillationParams
from vocabgraft.data.splits import is_held_out
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.encode import Embeddings, encode
from vocabgraft.models.resize import extended_copy
from vocabgraft.packs.pack import Pack, PackToken, identify, require_base
from vocabgraft.token_embeddings.distill import Context, choose_contexts, find_contexts, train_rows
from vocabgraft.token_embeddings.initialize import Start, initial_rows
from vocabgraft.tokens.shared_tokens import shared_tokens, shared_words
from vocabgraft.tokens.tokenizer import ExtendedToken, extend_tokenizer, is_one_token, raw_tokenizer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerFast

Method = Literal["distillation", "source_distillation", "matching_pursuit", "least_squares"]
METHODS: tuple[Method, ...] = get_args(Method)
# The default of mergekit's tokensurgeon.
ATOMS = 64
# Fewer do not determine how the two spaces relate.
LEAST_SHARED = 16
LONGEST_TOKEN = 64
# Words that both bases have, for the rotation between their spaces: several per dimension.
MOST_ANCHORS = 2_000


@dataclass(frozen=True)
class Target:
    """The new base, with the pack's tokens added to its tokenizer.

    Attributes:
        model: the base; it is not changed.
        tokenizer: the extended one.
        tokens: the added tokens, with the base's subword tokens of each.
        left_out: texts of the pack's tokens that the base already reads as one token.
    """

    model: "SentenceTransformer"
    tokenizer: "PreTrainedTokenizerFast"
    tokens: tuple[ExtendedToken, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Carried:
    """A pack for the new base, with its cost and quality.

    Attributes:
        pack: for the new base, without an adapter, which belongs to the weights of the old base.
        method: that made the rows.
        left_out: tokens that the new base already has.
        adapter_left: whether the old pack had an adapter, which cannot be transferred.
        shared: number of tokens that both bases have, if the method needs them.
        seconds: to make the rows.
        quality: from `measure`, on texts that no row was trained on.
    """

    pack: Pack
    method: Method
    left_out: tuple[str, ...]
    adapter_left: bool
    shared: int | None
    seconds: float
    quality: "Quality"


@dataclass(frozen=True)
class Quality:
    """How close a model with new tokens is to its base, which reads the same texts with old subword tokens.

    Attributes:
        texts: number of texts.
        mean, p10: cosine of the two embeddings of a text, mean and 10th percentile.
        reciprocal_rank: mean reciprocal rank in percent of a text among all texts: its embedding with new tokens is the
            query, the base's embeddings of all texts are the candidates.
    """

    texts: int
    mean: float
    p10: float
    reciprocal_rank: float


def prepare(pack: Pack, model: "SentenceTransformer") -> Target:
    """Add the pack's tokens to a copy of a base's tokenizer.

    Raises:
        VocabgraftError: when the base has all of them already, or one cannot be added.
    """
    base = raw_tokenizer(model)
    left_out = tuple(token.text for token in pack.tokens if is_one_token(base, token.new_token))
    wanted = [token.new_token for token in pack.tokens if token.text not in left_out]
    if not wanted:
        raise VocabgraftError(
            f"the base reads each of the {len(pack.tokens)} tokens of {pack.name!r} as one token already; "
            "there is nothing to transfer"
        )
    tokenizer = copy.deepcopy(model.tokenizer)
    tokens = extend_tokenizer(tokenizer, base, wanted, max(LONGEST_TOKEN, *(len(token.text) for token in wanted)))
    return Target(model, tokenizer, tuple(tokens), left_out)


def carry_over(
    pack: Pack,
    model: "SentenceTransformer",
    base_name: str,
    method: Method,
    settings: DistillationParams,
    seed: int,
    source: "SentenceTransformer | None" = None,
) -> Carried:
    """Make a pack for another base.

    Args:
        pack: to transfer.
        model: the new base; its weights are not changed.
        base_name: of the new base, for the new pack.
        method: one of `METHODS`.
        settings: of the distillation; every method is measured on its share of held-out texts.
        seed: of the distillation.
        source: the pack's own base, required by all methods except distillation.

    Raises:
        VocabgraftError: for a pack without texts, a source that is not the pack's base, or bases that share too few
            tokens.
    """
    require_method(method, source is not None)
    target = prepare(pack, model)
    contexts = _contexts(pack, target, settings)
    started = time.perf_counter()
    if method == "distillation":
        rows, shared = _distilled(target, contexts, _readings(model, contexts, settings), settings, seed), None
    elif method == "source_distillation":
        goals = source_goals(pack, target, contexts, _own_base(pack, source), settings)
        rows, shared = _distilled(target, contexts, goals, settings, seed), None
    else:
        rows, shared = _from_shared(pack, target, _own_base(pack, source), method)
    seconds = time.perf_counter() - started
    quality = measure(with_rows(target, rows), model, held_out(contexts, settings), settings.batch_size)
    figures = {"carried_from": asdict(pack.base), "method": method, "shared_tokens": shared, **asdict(quality)}
    carried = replace(
        pack,
        base=identify(model, base_name),
        tokens=tuple(PackToken.of(token.new_token) for token in target.tokens),
        rows=rows,
        adapter=None,
        gate=None,
        figures={"carried_over": figures},
    )
    return Carried(carried, method, target.left_out, pack.adapter is not None, shared, seconds, quality)


def require_method(method: str, has_source: bool) -> None:
    """Refuse an unknown method, or one that needs the pack's own base if it is not given."""
    if method not in METHODS:
        raise VocabgraftError(f"there is no method {method!r}; allowed: {', '.join(METHODS)}")
    if method != "distillation" and not has_source:
        raise VocabgraftError(f"{method} needs the pack's own base, which is not given; name it, or use distillation")


def with_rows(target: Target, rows: torch.Tensor) -> "SentenceTransformer":
    """The new base with the tokens and with rows of shape (tokens, width)."""
    return extended_copy(target.model, copy.deepcopy(target.tokenizer), rows)


def measure(
    student: "SentenceTransformer", teacher: "SentenceTransformer", contexts: Sequence[Context], batch_size: int
) -> Quality:
    """Measure how close a model with new tokens is to its base on texts with new tokens."""
    asked = _unit(student, [context.text for context in contexts], batch_size)
    answers = _unit(teacher, [context.teacher_text for context in contexts], batch_size)
    scores = asked @ answers.T
    own = np.diag(scores)
    # A tie counts against it.
    ranks = (scores >= own[:, None]).sum(axis=1)
    return Quality(len(contexts), float(own.mean()), float(np.quantile(own, 0.1)), float(100 * (1 / ranks).mean()))


def held_out(contexts: Sequence[Context], settings: DistillationParams) -> list[Context]:
    """The texts that distillation leaves out; all texts if it leaves out none."""
    return [context for context in contexts if is_held_out(context.text, settings.held_out)] or list(contexts)


def matching_pursuit(
    rows: torch.Tensor, source: torch.Tensor, target: torch.Tensor, atoms: int = ATOMS
) -> torch.Tensor:
    """Rows of the target as sparse mixtures of shared tokens, with the weights that fit the source.

    Orthogonal matching pursuit (Pati, Rezaiifar and Krishnaprasad, 1993), as mergekit's tokensurgeon uses it
    (Goddard and Fernandes Neto, 2025, "Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit").

    Args:
        rows: to transfer, (tokens, width of the source).
        source: rows of the shared tokens, (shared, width of the source).
        target: rows of the same tokens, (shared, width of the target).
        atoms: shared tokens per mixture, at most their number and the width of the source.

    Returns:
        Shape (tokens, width of the target).
    """
    rows, source = rows.double(), source.double()
    unit = torch.nn.functional.normalize(source, dim=1)
    residual = rows.clone()
    chosen = torch.empty(len(rows), 0, dtype=torch.long)
    basis = torch.empty(len(rows), 0, rows.shape[1], dtype=rows.dtype)
    for _ in range(min(atoms, len(source), source.shape[1])):
        scores = (residual @ unit.T).abs().scatter(1, chosen, -1.0)
        chosen = torch.cat([chosen, scores.argmax(dim=1, keepdim=True)], dim=1)
        # The new direction is orthogonalized against the others twice, which keeps them orthogonal in floats.
        direction = unit[chosen[:, -1]]
        for _ in range(2):
            direction = direction - torch.einsum("nk,nkw->nw", torch.einsum("nkw,nw->nk", basis, direction), basis)
        direction = torch.nn.functional.normalize(direction, dim=1)
        basis = torch.cat([basis, direction.unsqueeze(1)], dim=1)
        residual = residual - (residual * direction).sum(dim=1, keepdim=True) * direction
    weights = torch.linalg.lstsq(source[chosen].transpose(1, 2), rows.unsqueeze(-1), driver="gelsd").solution
    mixed: torch.Tensor = (weights.transpose(1, 2) @ target.double()[chosen]).squeeze(1)
    return mixed


def least_squares(rows: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Rows of the target by the affine map from source to target with the least squared error on shared tokens.

    Arguments and result as for `matching_pursuit`.
    """
    source, target = source.double(), target.double()
    means = source.mean(dim=0), target.mean(dim=0)
    # With fewer tokens than the source's width, gelsd returns the map with the smallest norm.
    found = torch.linalg.lstsq(source - means[0], target - means[1], driver="gelsd").solution
    mapped: torch.Tensor = (rows.double() - means[0]) @ found + means[1]
    return mapped


def _from_shared(pack: Pack, target: Target, source: "SentenceTransformer", method: Method) -> tuple[torch.Tensor, int]:
    ids = shared_tokens(raw_tokenizer(source), raw_tokenizer(target.model))
    if len(ids) < LEAST_SHARED:
        raise VocabgraftError(
            f"the bases share {len(ids)} tokens, too few to find rows with (at least {LEAST_SHARED}); use distillation"
        )
    matrices = _input_rows(source)[[pair[0] for pair in ids]], _input_rows(target.model)[[pair[1] for pair in ids]]
    places = {token.text: place for place, token in enumerate(pack.tokens)}
    rows = pack.rows[[places[token.text] for token in target.tokens]]
    found = {"matching_pursuit": matching_pursuit, "least_squares": least_squares}[method](rows, *matrices)
    return found.to(_input_rows(target.model)), len(ids)


def source_goals(
    pack: Pack,
    target: Target,
    contexts: Sequence[Context],
    source: "SentenceTransformer",
    settings: DistillationParams,
) -> torch.Tensor:
    """Goals for the contexts in the new base: its embeddings with old subword tokens, moved as in the pack's own base.

    The best-fitting rotation (the orthogonal Procrustes problem, Schönemann, 1966) maps embeddings of the pack's own
    base to the new base. It is fitted on texts that both read with old subword tokens: the contexts, and words that are
    one token in both.

    Returns:
        Shape (contexts, width of the new base's embeddings).
    """
    from vocabgraft.packs.bank import VocabularyBank

    size, old = settings.batch_size, [context.teacher_text for context in contexts]
    anchors = old + shared_words(raw_tokenizer(source), raw_tokenizer(target.model))[:MOST_ANCHORS]
    here, there = (torch.from_numpy(_unit(model, anchors, size)) for model in (source, target.model))
    bank = VocabularyBank(source, base=pack.base)
    bank.put(pack, "words")
    words = torch.from_numpy(_unit(bank.view("words"), [context.text for context in contexts], size))
    pieces = here[: len(old)]
    if pack.adapter is not None:
        # With the adapter but without the rows, so that the difference is the effect of the rows.
        bank.put(replace(pack, tokens=(), rows=pack.rows[:0], gate=None), "pieces")
        pieces = torch.from_numpy(_unit(bank.view("pieces"), old, size))
    return there[: len(old)] + (words - pieces) @ rotation(here, there)


def rotation(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The map with orthonormal rows or columns from one centered space to the other with the least error.

    Directions that do not occur in the texts map to zero.

    Args:
        source: shape (texts, width of the source).
        target: of the same texts, (texts, width of the target).

    Returns:
        Shape (width of the source, width of the target).
    """
    products = (source - source.mean(dim=0)).double().T @ (target - target.mean(dim=0)).double()
    left, sizes, right = torch.linalg.svd(products, full_matrices=False)
    shown = sizes > 1e-6 * sizes[0]
    found: torch.Tensor = (left[:, shown] @ right[shown]).to(source)
    return found


def _readings(model: "SentenceTransformer", contexts: Sequence[Context], settings: DistillationParams) -> torch.Tensor:
    return torch.from_numpy(_unit(model, [context.teacher_text for context in contexts], settings.batch_size))


def _distilled(
    target: Target, contexts: Sequence[Context], goals: torch.Tensor, settings: DistillationParams, seed: int
) -> torch.Tensor:
    """Train rows until the new base embeds the contexts, except held-out ones, near their goals."""
    weight = _input_rows(target.model)
    used = min(len(weight), len(target.model.tokenizer))
    start = Start(weight[:used], target.tokens, target.tokenizer.unk_token_id, seed)
    student = with_rows(target, initial_rows(settings.start, start))
    places = [place for place, context in enumerate(contexts) if not is_held_out(context.text, settings.held_out)]
    if places:
        chosen = [contexts[place] for place in places]
        train_rows(student, goals[places], chosen, target.tokens, settings, seed)
    return _input_rows(student)[[token.id for token in target.tokens]].clone()


def _contexts(pack: Pack, target: Target, settings: DistillationParams) -> list[Context]:
    unknown = target.tokenizer.unk_token_id
    if not pack.contexts:
        raise VocabgraftError(
            f"the pack {pack.name!r} holds no texts with its tokens, so nothing can be distilled or measured; "
            "make the pack with contexts"
        )
    found = find_contexts(pack.contexts, target.tokenizer, target.tokens, unknown)
    if not found:
        raise VocabgraftError(
            f"none of the {len(pack.contexts)} texts of the pack {pack.name!r} holds one of its tokens"
        )
    return choose_contexts(pack.contexts, target.tokenizer, target.tokens, settings.contexts_per_token, unknown)


def _own_base(pack: Pack, source: "SentenceTransformer | None") -> "SentenceTransformer":
    if source is None:
        raise VocabgraftError("the pack's own base is not given")
    require_base(pack, identify(source, "the model named as the pack's own base"))
    return source


def _input_rows(model: "SentenceTransformer") -> torch.Tensor:
    rows: torch.Tensor = model[0].auto_model.get_input_embeddings().weight.detach().cpu()
    return rows


def _unit(model: "SentenceTransformer", texts: Sequence[str], batch_size: int) -> Embeddings:
    vectors = encode(model, texts, batch_size, "document")
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)
