"""Times the encoding of two models, alternately."""

import statistics
import time
from collections.abc import Callable, Sequence

ROUNDS = 3


def compare_speed(
    base: Callable[[], object],
    merged: Callable[[], object],
    texts: int,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Texts a second of each, and the median of the ratio merged / base over rounds in which they take turns.

    Turns one after the other share what else the machine does, so the ratio says more than either figure.

    Args:
        base: encodes the texts with the base.
        merged: encodes them with the merged model.
        texts: how many there are.
        rounds: of both.
        clock: seconds.
    """
    seconds: list[Sequence[float]] = [[_seconds(encode, clock) for encode in (base, merged)] for _ in range(rounds)]
    return {
        "base_texts_per_second": round(texts / statistics.median(pair[0] for pair in seconds), 1),
        "merged_texts_per_second": round(texts / statistics.median(pair[1] for pair in seconds), 1),
        "ratio": round(statistics.median(before / after for before, after in seconds), 3),
    }


def _seconds(encode: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    encode()
    return max(clock() - started, 1e-9)
