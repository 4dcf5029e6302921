"""Speed by a clock that a test winds."""

from vocabgraft.evaluation.speed import compare_speed


class Clock:
    """Stands still but for what work adds."""

    def __init__(self) -> None:
        self.now, self.turns = 0.0, list[str]()

    def work(self, name: str, *seconds: float) -> object:
        """A function that takes these seconds, one after the other."""
        remaining = iter(seconds)

        def run() -> None:
            self.turns.append(name)
            self.now += next(remaining)

        return run


def test_the_two_take_turns_and_the_ratio_is_the_median_of_rounds() -> None:
    clock = Clock()
    # In the second round the machine is five times as slow for both, in the third for one alone.
    base, merged = clock.work("base", 2.0, 10.0, 2.0), clock.work("merged", 1.0, 5.0, 5.0)
    found = compare_speed(base, merged, 100, 3, lambda: clock.now)  # type: ignore[arg-type]
    assert clock.turns == ["base", "merged"] * 3
    assert found == {"base_texts_per_second": 50.0, "merged_texts_per_second": 20.0, "ratio": 2.0}
