"""What an export keeps: cosine per text and the order of search results."""

import numpy as np
import pytest

from vocabgraft.export.agreement import Encoded, compare

GENERATOR = np.random.default_rng(0)
QUERIES, DOCUMENTS = [f"q{i}" for i in range(5)], [f"d{i}" for i in range(30)]
EXACT = Encoded(GENERATOR.normal(size=(5, 8)), GENERATOR.normal(size=(30, 8)))


def test_equal_encodings_agree_in_everything_whatever_their_length() -> None:
    scaled = Encoded(3 * EXACT.queries, 0.5 * EXACT.documents + 1e-9)
    found = compare(EXACT, scaled, QUERIES, DOCUMENTS)
    assert found.cosine_min == pytest.approx(1) and (found.nearest_kept, found.first_kept) == (1.0, 1.0)
    assert (found.texts, found.queries) == (35, 5)


def test_a_text_that_lost_its_meaning_is_named_with_its_cosine() -> None:
    documents = EXACT.documents.copy()
    documents[7] *= -1
    found = compare(EXACT, Encoded(EXACT.queries, documents), QUERIES, DOCUMENTS)
    assert found.worst == "d7" and found.cosine_min == pytest.approx(-1)
    assert found.cosine_mean == pytest.approx((34 - 1) / 35)
    assert found.nearest_kept < 1


def test_a_text_that_is_no_number_is_the_worst() -> None:
    documents = EXACT.documents.copy()
    documents[3] = np.nan
    found = compare(EXACT, Encoded(EXACT.queries, documents), QUERIES, DOCUMENTS)
    assert found.worst == "d3" and np.isnan(found.cosine_min)


def test_documents_that_change_places_are_counted_by_hand() -> None:
    queries, documents = np.eye(2)[:1], np.array([[1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
    swapped = documents[[1, 0, 2]]
    found = compare(Encoded(queries, documents), Encoded(queries, swapped), ["q"], ["a", "b", "c"])
    assert (found.nearest_kept, found.first_kept) == (0.0, 0.0)
    queries, documents = np.eye(2)[:1], np.array([[1.0, i / 10] for i in range(40)])
    swapped = documents[[1, 0, *range(2, 8), 20, *range(9, 20), 8, *range(21, 40)]]
    names = [str(i) for i in range(40)]
    found = compare(Encoded(queries, documents), Encoded(queries, swapped), ["q"], names)
    # The first two of the ten change places, and one of the ten is lost.
    assert (found.nearest_kept, found.first_kept) == (0.9, 0.0)


def test_a_query_does_not_find_itself() -> None:
    queries = np.eye(3)[:1]
    documents = np.array([[1.0, 0, 0], [0.9, 0.1, 0], [0.8, 0.3, 0]])
    other = documents[[0, 2, 1]]
    found = compare(Encoded(queries, documents), Encoded(queries, other), ["a"], ["a", "b", "c"])
    assert found.first_kept == 0.0


def test_documents_that_are_equally_near_but_for_rounding_do_not_count_as_moved() -> None:
    queries, documents = np.eye(2)[:1], np.array([[1.0, 0.5], [1.0, 0.5], [0.0, 1.0]])
    rounded = documents + np.array([[0, 1e-7], [0, -1e-7], [0, 0]])
    found = compare(Encoded(queries, documents), Encoded(queries, rounded), ["q"], ["a", "b", "c"])
    assert found.first_kept == 1.0
