"""Distillation: trains new rows until texts get the embeddings that they had with subword tokens.

The loss pulls the pooled embedding of a text, tokenized with the new tokens, to the embedding that the base gives the
same text with its own subword tokens. Only the new rows train.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from vocabgraft.config.stages import DistillationParams
from vocabgraft.data.splits import is_held_out
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.encode import Embeddings
from vocabgraft.models.precision import autocast, in_float32, resolve_precision
from vocabgraft.token_embeddings.sinks import RowGuard
from vocabgraft.token_embeddings.trainable import require_finite, token_rows
from vocabgraft.tokens.new_token import NewToken, read_with_descriptions
from vocabgraft.tokens.tokenizer import ExtendedToken, new_ids_in

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerFast

# A token in fewer texts is also distilled from its description, since templates say nothing about its meaning.
RARE_TEXTS = 8
# The report gives the fidelity of tokens by their number of texts; these are the lower bounds.
BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64)
LOWER_RATE = "lower distillation.learning_rate (a tenth), or set distillation.precision to float32"
# Templates for tokens in too few real texts. They say nothing about the word, so none of them is false.
TEMPLATES = (
    "{}",
    "{}.",
    "about {}",
    "what is {}?",
    "an example of {}",
    "the text mentions {}",
    "{} and other things",
    "they spoke of {} today",
)


@dataclass(frozen=True)
class Context:
    """A text with at least one new token, as the student and the teacher read it.

    `is_made` says whether it comes from a template or a description, because too few real texts hold its token.
    """

    text: str
    teacher_text: str
    tokens: tuple[int, ...]
    length: int
    is_made: bool = False


def choose_contexts(
    texts: Sequence[str],
    tokenizer: "PreTrainedTokenizerFast",
    tokens: Sequence[ExtendedToken],
    per_token: int,
    unknown_id: int | None,
    describe_under: int = 0,
) -> list[Context]:
    """The texts to distill from: those with a new token, in order, until each of its tokens has `per_token`.

    A token with fewer texts gets the templates too; one with fewer than `describe_under` gets its description first.
    The teacher reads a special token, and any token that it can only read as unknown, as its description.
    """
    found = find_contexts(texts, tokenizer, tokens, unknown_id)
    uses = dict.fromkeys((token.id for token in tokens), 0)
    chosen = []
    for context in found:
        if any(uses[token] < per_token for token in context.tokens):
            chosen.append(context)
            for token in context.tokens:
                uses[token] += 1
    rare = [token for token in tokens if uses[token.id] < per_token]
    known = {context.text for context in chosen}
    made = [
        text
        for token in rare
        for text in _made_texts(token, uses[token.id] < describe_under)[: per_token - uses[token.id]]
    ]
    added = find_contexts([text for text in made if text not in known], tokenizer, tokens, unknown_id)
    return chosen + [replace(context, is_made=True) for context in added]


def _made_texts(token: ExtendedToken, is_rare: bool) -> list[str]:
    # The teacher reads a special token as its description, so the description would occur twice.
    is_described = is_rare and token.kind != "special" and token.description
    described = [f"{token.text}: {token.description}"] if is_described else []
    return [*described, *(template.format(token.text) for template in TEMPLATES)]


def find_contexts(
    texts: Sequence[str],
    tokenizer: "PreTrainedTokenizerFast",
    tokens: Sequence[ExtendedToken],
    unknown_id: int | None,
) -> list[Context]:
    """The distinct texts that hold a new token, in order, as the student and the teacher read them."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return []
    described = [_as_described(token, unknown_id) for token in tokens]
    encoded = tokenizer(distinct, add_special_tokens=False, verbose=False)["input_ids"]
    held = new_ids_in(encoded, [token.id for token in tokens])
    return [
        Context(text, read_with_descriptions(text, described), tuple(sorted(found)), len(ids))
        for text, ids, found in zip(distinct, encoded, held, strict=True)
        if found
    ]


def distil(
    student: "SentenceTransformer",
    teacher: "SentenceTransformer",
    contexts: Sequence[Context],
    tokens: Sequence[ExtendedToken],
    settings: DistillationParams,
    seed: int,
) -> dict[str, Any]:
    """Train the rows of the new tokens in `student` (changed in place) and report their fidelity.

    Args:
        student: the resized base with initialized rows.
        teacher: the base.
        contexts: from `choose_contexts`.
        tokens: the new tokens.
        settings: of the training.
        seed: of the order of the batches; the global generators are neither read nor changed.

    Returns:
        Fidelity, the cosine to the teacher on held-out contexts: mean and 10th percentile, for words and for special
        tokens, before and after, by token, and by the number of real training texts of a token; tokens under the limit;
        the precision of the computation, with the speeds that `auto` measured.

    Raises:
        VocabgraftError: if the base embeds a text as NaN or infinity, or a row becomes NaN or infinite.
    """
    with in_float32(student, teacher):
        return _distil(student, teacher, contexts, tokens, settings, seed)


def _distil(
    student: "SentenceTransformer",
    teacher: "SentenceTransformer",
    contexts: Sequence[Context],
    tokens: Sequence[ExtendedToken],
    settings: DistillationParams,
    seed: int,
) -> dict[str, Any]:
    held_out = np.array([is_held_out(context.text, settings.held_out) for context in contexts])
    train = [context for context, held in zip(contexts, held_out, strict=True) if not held]
    test = [context for context, held in zip(contexts, held_out, strict=True) if held]
    precision = resolve_precision(settings.precision, student)
    settings = settings.model_copy(update={"precision": precision.name})
    before = fidelity(student, teacher, test, settings.batch_size)
    set_back: dict[str, int] = {}
    if train:
        set_back = train_rows(student, teach(teacher, train, settings.batch_size), train, tokens, settings, seed)
    after = fidelity(student, teacher, test, settings.batch_size)
    return {
        "contexts": {"trained_on": len(train), "held_out": len(test)},
        "precision": precision.name,
        **precision.measured,
        "set_back": set_back,
        "before": _summary(before, test, tokens),
        "after": _summary(after, test, tokens),
        **_by_token(after, test, tokens, settings.least_fidelity),
        "by_texts": _by_texts(after, train, test, tokens),
    }


def fidelity(
    student: "SentenceTransformer", teacher: "SentenceTransformer", contexts: Sequence[Context], batch_size: int
) -> Embeddings:
    """Cosine of the student's to the teacher's embedding of each context: shape (contexts,)."""
    if not contexts:
        return np.zeros(0, dtype=np.float32)
    pairs = []
    for model, texts in (
        (student, [context.text for context in contexts]),
        (teacher, [context.teacher_text for context in contexts]),
    ):
        embeddings = _encode(model, texts, batch_size)
        pairs.append(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))
    return np.asarray((pairs[0] * pairs[1]).sum(axis=1), dtype=np.float32)


def _as_described(token: ExtendedToken, unknown_id: int | None) -> NewToken:
    """The token for `read_with_descriptions`: special if the base reads it only as unknown."""
    unreadable = all(piece == unknown_id for piece in token.pieces)
    return NewToken(token.text, "special", token.description) if unreadable else token.new_token


def train_rows(
    student: "SentenceTransformer",
    goals: torch.Tensor,
    contexts: Sequence[Context],
    tokens: Sequence[ExtendedToken],
    settings: DistillationParams,
    seed: int,
) -> dict[str, int]:
    """Train the rows of the new tokens in `student` (changed in place) towards a goal for each context.

    Args:
        student: with initialized rows.
        goals: shape (contexts, width of an embedding); only their direction matters.
        contexts: each holds at least one of the tokens.
        tokens: the new tokens.
        settings: of the training.
        seed: of the order of the batches; the global generators are neither read nor changed.

    Returns:
        The tokens whose row became an attention sink and was reset, with how often.

    Raises:
        VocabgraftError: if a goal, the loss or a row becomes NaN or infinite.
    """
    if broken := (~goals.isfinite().all(dim=1)).nonzero()[:, 0].tolist():
        raise VocabgraftError(
            f"the base embeds {len(broken)} of {len(goals)} texts as NaN or infinity, the first: "
            f"{contexts[broken[0]].teacher_text[:80]!r}; choose a base whose weights are intact"
        )
    with in_float32(student):
        return _train_rows(student, goals, contexts, tokens, settings, seed)


def _train_rows(
    student: "SentenceTransformer",
    goals: torch.Tensor,
    contexts: Sequence[Context],
    tokens: Sequence[ExtendedToken],
    settings: DistillationParams,
    seed: int,
) -> dict[str, int]:
    precision = resolve_precision(settings.precision, student).name
    # Evaluation mode: dropout would pull the rows towards a noisy student and draw from the global generators.
    student.eval()
    generator = torch.Generator().manual_seed(seed)
    batches_per_epoch = -(-len(contexts) // settings.batch_size)
    epochs = max(settings.epochs, -(-settings.least_steps // batches_per_epoch))
    with token_rows(student, [token.id for token in tokens]) as rows:
        # Here momentum helps, since all texts of a token pull in the same direction: without it, fidelity falls from
        # 0.935 to 0.910 (an ontology with 414 words).
        ids, texts = [token.id for token in tokens], [token.text for token in tokens]
        guard = RowGuard(student, ids, texts, rows.rows, most_moved=float("inf"))
        optimizer = torch.optim.Adam([rows.rows], lr=settings.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, batches_per_epoch * epochs)
        for epoch in range(epochs):
            progress = tqdm(total=batches_per_epoch, desc=f"distillation, epoch {epoch + 1} of {epochs}")
            for batch in _batches(contexts, settings.batch_size, generator):
                with autocast(precision, student.device):
                    embedded = _forward(student, [contexts[place].text for place in batch], _prompt(student))
                loss = 1 - torch.nn.functional.cosine_similarity(embedded.float(), goals[batch]).mean()
                _require_number(loss, contexts[batch[0]])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                with guard.step(optimizer):
                    optimizer.step()
                schedule.step()
                progress.update()
            progress.close()
        guard.finish(optimizer)
        require_finite(rows.rows, [token.text for token in tokens], "by distillation", LOWER_RATE)
    return guard.report()


def _require_number(loss: torch.Tensor, context: Context) -> None:
    if not bool(loss.isfinite()):
        raise VocabgraftError(
            f"the loss of the distillation is {float(loss)} in the batch of {context.text[:80]!r}; {LOWER_RATE}"
        )


def _batches(contexts: Sequence[Context], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Batches of texts of similar length, in random order; ties in length are shuffled again for each epoch."""
    shuffled = torch.randperm(len(contexts), generator=generator).tolist()
    ordered = sorted(shuffled, key=lambda place: contexts[place].length)
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    for index in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[index]


def teach(teacher: "SentenceTransformer", contexts: Sequence[Context], batch_size: int) -> torch.Tensor:
    """A teacher's embeddings of the contexts, with its own subword tokens: shape (contexts, width of an embedding)."""
    return torch.from_numpy(_encode(teacher, [context.teacher_text for context in contexts], batch_size)).to(
        teacher.device
    )


def _encode(model: "SentenceTransformer", texts: Sequence[str], batch_size: int) -> Embeddings:
    prompt = _prompt(model)
    encoded = model.encode(
        list(texts), prompt=prompt, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True
    )
    return np.asarray(encoded, dtype=np.float32)


def _prompt(model: "SentenceTransformer") -> str | None:
    """The prompt for documents, since most texts of an index are documents."""
    return model.prompts.get("document") or None


def _forward(model: "SentenceTransformer", texts: list[str], prompt: str | None) -> torch.Tensor:
    features = model.preprocess(texts, prompt=prompt)
    moved = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in features.items()
    }
    embedded: torch.Tensor = model(moved)["sentence_embedding"]
    return embedded


def _summary(cosines: Embeddings, contexts: Sequence[Context], tokens: Sequence[ExtendedToken]) -> dict[str, Any]:
    special = {token.id for token in tokens if token.kind == "special"}
    is_special = np.array([bool(special.intersection(context.tokens)) for context in contexts], dtype=bool)
    return {
        name: {
            "mean": _rounded(cosines[rows].mean()),
            "p10": _rounded(np.quantile(cosines[rows], 0.1)),
            "texts": int(rows.sum()),
        }
        for name, rows in (("all", np.ones_like(is_special)), ("words", ~is_special), ("special_tokens", is_special))
        if rows.any()
    }


def _by_token(
    cosines: Embeddings, contexts: Sequence[Context], tokens: Sequence[ExtendedToken], least: float
) -> dict[str, Any]:
    figures = {}
    for token in tokens:
        own = [cosine for cosine, context in zip(cosines, contexts, strict=True) if token.id in context.tokens]
        if own:
            figures[token.text] = {
                "mean": _rounded(np.mean(own)),
                "p10": _rounded(np.quantile(own, 0.1)),
                "texts": len(own),
            }
    return {
        "by_token": figures,
        "least_fidelity": least,
        # NaN compares false, so a mean of NaN counts as under the limit.
        "under_limit": sorted(text for text, figure in figures.items() if not figure["mean"] >= least),
        "not_measured": sorted(token.text for token in tokens if token.text not in figures),
    }


def _by_texts(
    cosines: Embeddings, train: Sequence[Context], test: Sequence[Context], tokens: Sequence[ExtendedToken]
) -> list[dict[str, Any]]:
    """The fidelity of tokens by their number of real training texts, in the ranges of `BUCKETS`."""
    real = Counter(token for context in train if not context.is_made for token in context.tokens)
    own: dict[int, list[float]] = {}
    for cosine, context in zip(cosines.tolist(), test, strict=True):
        for token in context.tokens:
            own.setdefault(token, []).append(cosine)
    table = []
    for least, above in zip(BUCKETS, (*BUCKETS[1:], math.inf), strict=True):
        inside = [token.id for token in tokens if least <= real[token.id] < above]
        means = [np.mean(own[token]) for token in inside if token in own]
        if inside:
            entry = {"from": least, "to": None if above == math.inf else int(above) - 1, "tokens": len(inside)}
            mean, p10 = (_rounded(np.mean(means)), _rounded(np.quantile(means, 0.1))) if means else (None, None)
            table.append({**entry, "measured": len(means), "mean": mean, "p10": p10})
    return table


def _rounded(value: Any) -> float:
    return round(float(value), 6)
