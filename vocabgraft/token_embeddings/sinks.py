"""Attention sinks: decides when a new token acts like the first token of a text, and resets its row.

A transformer parks attention on its first token, whose hidden state holds a few very large values (Xiao et al., 2023,
"Efficient Streaming Language Models with Attention Sinks"; Sun et al., 2024, "Massive Activations in Large Language
Models"). A token embedding that training pushes over a threshold makes the same values at its own position. Its word
then means nothing and gets almost no gradient, so it rarely comes back. The change happens within one optimizer step of
usual size, and no activation announces it, so it is looked for again and again.
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
# A token alone, and within a sentence: a sink is one in both, but one that is young may show in one of them first.
ALONE = ("{}",)
ALONE_AND_IN_SENTENCE = ("{}", "the {} was done")
# Own words of the base that say what is usual. Of 2,000 words of all-MiniLM-L6-v2, alone and in
# a sentence, the largest ratio is 0.75.
REFERENCE_WORDS = 500
# Where the base's own words come so near to the first token, the ratio tells nothing about new ones.
TELLS_BELOW = 0.9
TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class SinkProbe:
    """Texts that hold one of the probed tokens each, encoded once so that they can be looked at often.

    Attributes:
        tokens: how many tokens are probed.
        batches: input ids and attention masks, (texts, length).
        owners: the place of each text's token, (texts,) for each batch.
        positions: where the token stands in each text, (texts,) for each batch.
    """

    tokens: int
    batches: tuple[dict[str, torch.Tensor], ...]
    owners: tuple[torch.Tensor, ...]
    positions: tuple[torch.Tensor, ...]

    @classmethod
    def of(
        cls, model: "SentenceTransformer", token_ids: Sequence[int], texts: Sequence[str], forms: Sequence[str] = ALONE
    ) -> "SinkProbe":
        """Put each token's text into each form; a form that does not hold the token after the first place is left out.

        Args:
            model: whose tokenizer is used.
            token_ids: of the tokens.
            texts: how each token is written.
            forms: texts with `{}` in the token's place.
        """
        batches, owners, positions = [], [], []
        for start in range(0, len(token_ids), TEXTS_AT_ONCE):
            ids = token_ids[start : start + TEXTS_AT_ONCE]
            for form in forms:
                filled = [form.format(text) for text in texts[start : start + TEXTS_AT_ONCE]]
                encoded = model.tokenizer(filled, padding=True, return_tensors="pt")
                input_ids, mask = encoded["input_ids"], encoded["attention_mask"]
                found = (input_ids == torch.tensor(ids)[:, None]) & mask.bool()
                # Of a text without special tokens, the first token may be the new one itself.
                found[torch.arange(len(ids)), mask.argmax(dim=1)] = False
                kept = found.any(dim=1)
                batches.append({"input_ids": input_ids[kept], "attention_mask": mask[kept]})
                owners.append(torch.arange(start, start + len(ids))[kept])
                positions.append(found[kept].int().argmax(dim=1))
        return cls(len(token_ids), tuple(batches), tuple(owners), tuple(positions))

    @torch.no_grad()
    def ratios(self, model: "SentenceTransformer") -> Floats:
        """The largest hidden activation at each token's position over that at the first token: shape (tokens,).

        The largest over all layers, and over the forms. NaN for a token that no form holds, and for a model that gives
        no hidden states.
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
    """What ratio is usual, and what ratio is that of a sink.

    Attributes:
        usual: the largest of the base's own words.
        sink: halfway from there to the first token's 1.
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
    """Measure the limits on the model's own words, a sample of the same words for every call."""
    ids, texts = own_words(model, set(new_ids), REFERENCE_WORDS)
    ratios = SinkProbe.of(model, ids, texts, forms).ratios(model) if ids else np.array([np.nan])
    usual = float(np.nanmax(ratios)) if np.isfinite(ratios).any() else np.inf
    return SinkLimits(usual, (1 + usual) / 2)


def own_words(model: "SentenceTransformer", new_ids: set[int], most: int) -> tuple[list[int], list[str]]:
    """Ids and texts of words that the base has a token for: the same sample for every call."""
    tokenizer = model.tokenizer
    generator = np.random.default_rng(0)
    ids, texts = [], []
    for token_id in generator.permutation(len(tokenizer)).tolist():
        text = tokenizer.decode([token_id]).strip()
        if token_id in new_ids or len(text) < 3 or not text.isalpha():
            continue
        ids.append(token_id)
        texts.append(text)
        # Some words are read otherwise within a text, and drop out there.
        if len(ids) == most:
            break
    return ids, texts


class RowGuard:
    """Sets a new token's row back to where it last was no sink, and lets it move on in smaller steps.

    Looked at every `LOOK_EVERY` steps. Each time that a row is set back its steps are halved from then on, and after
    `MOST_SET_BACK` times it stays where it is.
    """

    LOOK_EVERY = 10
    MOST_SET_BACK = 3

    def __init__(
        self, model: "SentenceTransformer", token_ids: Sequence[int], texts: Sequence[str], rows: torch.nn.Parameter
    ) -> None:
        """Measure the limits on the model as it is, and remember the rows.

        Args:
            model: in which `rows` stand for `token_ids`.
            token_ids: of the rows, in their order.
            texts: how each token is written.
            rows: the trained parameter, (tokens, width), changed in place.
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
        self._slowed = torch.zeros(0, dtype=torch.long, device=rows.device)
        self._before = self.start[:0]

    @contextmanager
    def step(self, optimizer: Any) -> Iterator[None]:
        """Around one step of a plain optimizer."""
        self.before_step()
        yield
        self.after_step()
        self.steps += 1
        if self.steps % self.LOOK_EVERY == 0:
            self.look(optimizer)

    def before_step(self) -> None:
        """Remember the rows whose steps are smaller than the optimizer's."""
        self._slowed = (self.rates[:, 0] < 1).nonzero()[:, 0]
        self._before = self.rows.detach()[self._slowed].clone()

    @torch.no_grad()
    def after_step(self) -> None:
        """Shorten the step of the rows that were set back."""
        if len(self._slowed):
            step = self.rows[self._slowed] - self._before
            self.rows[self._slowed] = self._before + self.rates[self._slowed] * step

    def look(self, optimizer: Any) -> None:
        """Set back every row that is a sink by now, and remember the others as they are."""
        if self.limits.tell:
            self._set_back(self._over(self.often), self.safe, optimizer)
            self.safe = self.rows.detach().clone()

    def finish(self, optimizer: Any) -> None:
        """Look a last time, alone and in a sentence; a row that is a sink even where it was safe goes to its start."""
        if self.limits.tell:
            self._set_back(self._over(self.whole), self.safe, optimizer)
            self._set_back(self._over(self.whole), self.start, optimizer)
            self.safe = self.rows.detach().clone()

    def _over(self, probe: SinkProbe) -> torch.Tensor:
        # At the largest ratio of an own word, well below a sink: a row that was set back for nothing loses little.
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
        # The momentum would carry the row over again.
        for name in ("exp_avg", "momentum_buffer"):
            if isinstance(state.get(name), torch.Tensor):
                state[name][places] = 0

    def report(self) -> dict[str, int]:
        """The tokens that were set back, with how often."""
        return {self.texts[place]: int(self.set_back[place]) for place in self.set_back.nonzero()[:, 0].tolist()}

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps."""
        return {"start": self.start, "safe": self.safe, "rates": self.rates, "set_back": self.set_back}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a checkpoint."""
        self.start, self.safe, self.rates, self.set_back = (
            state[name].to(self.rows.device) for name in ("start", "safe", "rates", "set_back")
        )
