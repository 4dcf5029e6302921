"""Attention sinks: detects new tokens that act like the first token of a text, and resets their rows.

A transformer parks attention on its first token, whose hidden state has a few very large values (Xiao et al., 2023,
"Efficient Streaming Language Models with Attention Sinks"; Sun et al., 2024, "Massive Activations in Large Language
Models"). A token embedding that training pushes over a threshold produces the same values at its own position. Its word
then means nothing and gets almost no gradient, so it rarely recovers. The change happens within one optimizer step of
normal size, and no activation announces it, so rows are checked regularly.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vocabgraft.models.gate import transformer_of_new_tokens

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Floats = np.ndarray[Any, np.dtype[np.float64]]
# A token alone, and within a sentence: a sink shows in both, but a new one may show in one of them first.
ALONE = ("{}",)
ALONE_AND_IN_SENTENCE = ("{}", "the {} was done")
# A sample of the base's own words defines the usual ratio. Of 2,000 words of all-MiniLM-L6-v2, alone and in a sentence,
# the largest ratio is 0.75.
REFERENCE_WORDS = 500
# If the base's own words come this close to the first token, the ratio does not identify sinks.
TELLS_BELOW = 0.9
TEXTS_AT_ONCE, ROWS_AT_ONCE = 64, 8192


@dataclass(frozen=True)
class SinkProbe:
    """Texts that hold one of the probed tokens each, tokenized once and used for every check.

    Attributes:
        tokens: number of probed tokens.
        batches: input ids and attention masks, (texts, length).
        owners: index of each text's token, (texts,) for each batch.
        positions: position of the token in each text, (texts,) for each batch.
    """

    tokens: int
    batches: tuple[dict[str, torch.Tensor], ...]
    owners: tuple[torch.Tensor, ...]
    positions: tuple[torch.Tensor, ...]

    @classmethod
    def of(
        cls, model: "SentenceTransformer", token_ids: Sequence[int], texts: Sequence[str], forms: Sequence[str] = ALONE
    ) -> "SinkProbe":
        """Put each token's text into each form; skips forms that hold the token only in the first position.

        Args:
            model: its tokenizer is used.
            token_ids: of the tokens.
            texts: of the tokens.
            forms: texts with `{}` for the token.
        """
        batches, owners, positions = [], [], []
        for start in range(0, len(token_ids), TEXTS_AT_ONCE):
            ids = token_ids[start : start + TEXTS_AT_ONCE]
            for form in forms:
                filled = [form.format(text) for text in texts[start : start + TEXTS_AT_ONCE]]
                encoded = model.tokenizer(filled, padding=True, return_tensors="pt")
                input_ids, mask = encoded["input_ids"], encoded["attention_mask"]
                found = (input_ids == torch.tensor(ids)[:, None]) & mask.bool()
                # In a text without special tokens, the first token may be the new one itself.
                found[torch.arange(len(ids)), mask.argmax(dim=1)] = False
                kept = found.any(dim=1)
                batches.append({"input_ids": input_ids[kept], "attention_mask": mask[kept]})
                owners.append(torch.arange(start, start + len(ids))[kept])
                positions.append(found[kept].int().argmax(dim=1))
        return cls(len(token_ids), tuple(batches), tuple(owners), tuple(positions))

    @torch.no_grad()
    def ratios(self, model: "SentenceTransformer") -> Floats:
        """The largest hidden activation at each token's position divided by the first token's: (tokens,).

        The maximum over all layers and forms. NaN for a token that no form holds, and for a model without hidden
        states.
        """
        transformer = transformer_of_new_tokens(model)
        was_training = transformer.training
        transformer.eval()
        ratios = torch.full((self.tokens,), -torch.inf, dtype=torch.float64)
        for batch, owners, positions in zip(self.batches, self.owners, self.positions, strict=True):
            if len(owners):
                found = _ratios(transformer, batch, positions).double()
                ratios = ratios.scatter_reduce(0, owners, found, "amax")
        transformer.train(was_training)
        return np.where(np.isneginf(ratios.numpy()), np.nan, ratios.numpy())


def _ratios(transformer: Any, batch: dict[str, torch.Tensor], positions: torch.Tensor) -> torch.Tensor:
    device = next(transformer.parameters()).device
    inputs = {name: value.to(device) for name, value in batch.items()}
    states = getattr(transformer(**inputs, output_hidden_states=True), "hidden_states", None)
    if not states:
        return torch.full((len(positions),), torch.nan)
    largest = torch.stack([state.float().abs().amax(dim=-1).cpu() for state in states]).amax(dim=0)
    rows = torch.arange(len(positions))
    return largest[rows, positions] / largest[rows, batch["attention_mask"].argmax(dim=1)]


@dataclass(frozen=True)
class SinkLimits:
    """The usual ratio, and the ratio of a sink.

    Attributes:
        usual: the largest ratio of the base's own words.
        sink: halfway from `usual` to 1, the ratio of the first token.
    """

    usual: float
    sink: float

    @property
    def tell(self) -> bool:
        """Whether the ratio separates words from the first token in this model."""
        return bool(self.usual < TELLS_BELOW)


def sink_limits(
    model: "SentenceTransformer", new_ids: Sequence[int], forms: Sequence[str] = ALONE_AND_IN_SENTENCE
) -> SinkLimits:
    """Measure the limits on the model's own words; every call uses the same sample."""
    ids, texts = own_words(model, set(new_ids), REFERENCE_WORDS)
    ratios = SinkProbe.of(model, ids, texts, forms).ratios(model) if ids else np.array([np.nan])
    usual = float(np.nanmax(ratios)) if np.isfinite(ratios).any() else np.inf
    return SinkLimits(usual, (1 + usual) / 2)


def own_words(model: "SentenceTransformer", new_ids: set[int], most: int) -> tuple[list[int], list[str]]:
    """Ids and texts of words that are one token of the base; every call returns the same sample."""
    tokenizer = model.tokenizer
    generator = np.random.default_rng(0)
    ids, texts = [], []
    for token_id in generator.permutation(len(tokenizer)).tolist():
        text = tokenizer.decode([token_id]).strip()
        if token_id in new_ids or len(text) < 3 or not text.isalpha():
            continue
        ids.append(token_id)
        texts.append(text)
        # Some words are tokenized differently within a text, and are left out.
        if len(ids) == most:
            break
    return ids, texts


class RowGuard:
    """Keeps each new token's row sound while an optimizer trains the rows.

    Every `LOOK_EVERY` steps the rows are checked. A row that became an attention sink is reset to its last safe value,
    and its steps are halved from then on; after `MOST_SET_BACK` resets it no longer moves.

    Two bounds hold at every step. No row becomes longer than the longest of the base's own rows. No row moves further
    from its start than `most_moved` times the length of its start or, if larger, the mean length of the base's own
    rows: Adam's momentum keeps moving the row of a rare word for dozens of steps after each of its texts, and such a
    word may lose its meaning. docs/benchmarks.md compares bounds.
    """

    LOOK_EVERY = 10
    MOST_SET_BACK = 3

    def __init__(
        self,
        model: "SentenceTransformer",
        token_ids: Sequence[int],
        texts: Sequence[str],
        rows: torch.nn.Parameter,
        most_moved: float = 0.75,
    ) -> None:
        """Measure the limits on the current model, and keep the rows.

        Args:
            model: uses `rows` for `token_ids`.
            token_ids: of the rows, in order.
            texts: of the tokens.
            rows: the trained parameter, (tokens, width), changed in place.
            most_moved: the largest distance of a row from its start, in lengths of the start (or of a mean row).
        """
        self.model, self.rows = model, rows
        self.limits = sink_limits(model, token_ids)
        self.often = SinkProbe.of(model, token_ids, texts, ALONE)
        self.whole = SinkProbe.of(model, token_ids, texts, ALONE_AND_IN_SENTENCE)
        self.start = rows.detach().clone()
        self.safe = self.start.clone()
        self.rates = torch.ones(len(token_ids), 1, device=rows.device)
        self.set_back = torch.zeros(len(token_ids), dtype=torch.long, device=rows.device)
        self.texts, self.steps = list(texts), 0
        # Slightly inside the limit, so that rounding cannot carry a row over it.
        mean, longest = own_row_lengths(model, token_ids)
        self.longest = longest * (1 - 1e-6)
        self.most_moved, self.mean = most_moved, mean
        self.radius = self._radius()
        self._before = self.start

    @contextmanager
    def step(self, optimizer: Any) -> Iterator[None]:
        """Wraps one step of a plain optimizer."""
        self.before_step()
        yield
        self.after_step()
        self.steps += 1
        if self.steps % self.LOOK_EVERY == 0:
            self.look(optimizer)

    def before_step(self) -> None:
        """Keep a copy of the current rows."""
        self._before = self.rows.detach().clone()

    @torch.no_grad()
    def after_step(self) -> None:
        """Shorten the step of rows that were reset, then bound the distance from the start and the length."""
        reset = (self.rates != 1)[:, 0]
        self.rows[reset] = self._before[reset] + self.rates[reset] * (self.rows[reset] - self._before[reset])
        moved = self.rows - self.start
        distances = moved.norm(dim=1, keepdim=True)
        far = (distances > self.radius)[:, 0]
        self.rows[far] = self.start[far] + moved[far] * (self.radius / distances)[far]
        lengths = self.rows.norm(dim=1, keepdim=True)
        long = (lengths > self.longest)[:, 0]
        # A row that started longer may keep its length, but not grow.
        limits = self._before.norm(dim=1, keepdim=True).clamp(min=self.longest)
        self.rows[long] *= (limits / lengths).clamp(max=1)[long]

    def _radius(self) -> torch.Tensor:
        # Rows that start as small noise, as transformers initializes them, need room too.
        lengths: torch.Tensor = self.start.norm(dim=1, keepdim=True)
        return self.most_moved * lengths.clamp(min=self.mean)

    def look(self, optimizer: Any) -> None:
        """Reset every row that is a sink, and keep the others as safe."""
        if self.limits.tell:
            self._set_back(self._over(self.often), self.safe, optimizer)
            self.safe = self.rows.detach().clone()

    def finish(self, optimizer: Any) -> None:
        """Check a last time, alone and in a sentence; a row whose safe value is a sink too is reset to its start."""
        if self.limits.tell:
            self._set_back(self._over(self.whole), self.safe, optimizer)
            self._set_back(self._over(self.whole), self.start, optimizer)
            self.safe = self.rows.detach().clone()

    def _over(self, probe: SinkProbe) -> torch.Tensor:
        # The limit is the largest ratio of an own word, well below a sink: a row that is reset needlessly loses little.
        over = np.flatnonzero(probe.ratios(self.model) > self.limits.usual)
        return torch.from_numpy(over).to(self.rows.device)

    @torch.no_grad()
    def _set_back(self, places: torch.Tensor, to: torch.Tensor, optimizer: Any) -> None:
        if not len(places):
            return
        self.rows[places] = to[places]
        self.set_back[places] += 1
        self.rates[places] = torch.where(
            self.set_back[places, None] < self.MOST_SET_BACK, self.rates[places] / 2, torch.zeros(())
        )
        state = optimizer.state.get(self.rows, {})
        # The momentum would move the row over the limit again.
        for name in ("exp_avg", "momentum_buffer"):
            if isinstance(state.get(name), torch.Tensor):
                state[name][places] = 0

    def report(self) -> dict[str, int]:
        """The tokens that were reset, with how often."""
        return {self.texts[place]: int(self.set_back[place]) for place in self.set_back.nonzero()[:, 0].tolist()}

    def state(self) -> dict[str, torch.Tensor]:
        """The state for a checkpoint."""
        return {"start": self.start, "safe": self.safe, "rates": self.rates, "set_back": self.set_back}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Resume from a checkpoint."""
        self.start, self.safe, self.rates, self.set_back = (
            state[name].to(self.rows.device) for name in ("start", "safe", "rates", "set_back")
        )
        self.radius = self._radius()


def own_row_lengths(model: "SentenceTransformer", token_ids: Sequence[int]) -> tuple[float, float]:
    """The mean and the largest length of the input embeddings of the base's own tokens."""
    embeddings = model[0].auto_model.get_input_embeddings()
    new, count = set(token_ids), min(model[0].auto_model.config.vocab_size, len(model.tokenizer))
    old = [token_id for token_id in range(count) if token_id not in new]
    total, longest = 0.0, 0.0
    with torch.no_grad():
        for start in range(0, len(old), ROWS_AT_ONCE):
            ids = torch.tensor(old[start : start + ROWS_AT_ONCE], device=model.device)
            lengths = embeddings(ids).float().norm(dim=1)
            total, longest = total + float(lengths.sum()), max(longest, float(lengths.max()))
    return total / max(len(old), 1), longest
