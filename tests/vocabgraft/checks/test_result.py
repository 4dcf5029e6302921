"""One function counts verdicts for everything that shows a count."""

from vocabgraft.checks.result import VERDICTS, count_verdicts, describe_counts


def test_every_check_is_counted_once() -> None:
    verdicts = ["passed"] * 31 + ["waived", "does not apply", "does not apply", "too few to judge"]
    counts = count_verdicts(iter(verdicts))
    assert list(counts) == list(VERDICTS)
    assert sum(counts.values()) == len(verdicts)
    said = "31 of 35 checks passed; 1 waived, 1 too few to judge, 2 do not apply"
    # JSON files have sorted keys.
    assert describe_counts(counts) == describe_counts(dict(sorted(counts.items()))) == said


def test_what_there_is_none_of_is_not_named() -> None:
    assert describe_counts(count_verdicts(["passed", "passed"])) == "2 of 2 checks passed"
    assert describe_counts(count_verdicts(["failed", "does not apply"])) == (
        "0 of 2 checks passed; 1 failed, 1 does not apply"
    )
