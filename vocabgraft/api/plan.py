"""`vg.plan_vocabulary`: chooses words to add from texts in memory."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vocabgraft.api.extend import resolve_model
from vocabgraft.planning import ranking
from vocabgraft.planning.corpus import Block
from vocabgraft.planning.counts import SAMPLED_BYTES, CountingJob, FormCounter, WordCounts, count_blocks
from vocabgraft.planning.ranking import Plan, PlanParams
from vocabgraft.tokens.tokenizer import raw_tokenizer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

COUNTERS = 1_000_000


def plan_vocabulary(
    base: "SentenceTransformer | str | Path",
    texts: Sequence[str],
    *,
    background: Sequence[str] = (),
    known: Iterable[str] = (),
    params: PlanParams | None = None,
) -> Plan:
    """Rank the words of texts by the number of tokens that adding them would save.

    Args:
        base: the model to extend.
        texts: of the domain.
        background: general texts; a word must then be specific to `texts`.
        known: words to leave out.
        params: the limits; None uses the defaults.

    Returns:
        `plan.words`, best first, each with `text`, `count` and `saved`; `plan.knee`, the number of words after which
        returns diminish; `plan.dropped`, the words left out by reason.

    Raises:
        VocabgraftError: if no word is worth adding, with the number left out for each reason.
    """
    tokenizer = raw_tokenizer(resolve_model(base))
    counts = _counted(tokenizer, texts)
    against = _counted(tokenizer, background).counts if background else None
    return ranking.plan_vocabulary(tokenizer, counts.counts, params or PlanParams(), against, known)


def _counted(tokenizer: "Tokenizer", texts: Sequence[str]) -> WordCounts:
    job = CountingJob(tokenizer, (), COUNTERS, max(1, sum(map(len, texts)) // SAMPLED_BYTES))
    return count_blocks([Block([text for text in texts if text.strip()], 0)], FormCounter(tokenizer), job)
