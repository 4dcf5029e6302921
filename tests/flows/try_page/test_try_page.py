"""The try page: what it answers, what it caches, and what it never lets through."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from flows.service import ui
from flows.try_page import documents as corpora
from flows.try_page.app import LONGEST, create_app
from flows.try_page.comparison import Comparison
from flows.try_page.documents import embedded, read_corpus
from tests.conftest import ROOT
from tests.flows.service.test_ui import free_port
from tests.flows.try_page.try_samples import HOSTILE, NEW_WORD, RELATION, TEXTS, comparison
from vocabgraft.errors import VocabgraftError
from vocabgraft.evaluation.by_token import nearest_rows


@pytest.fixture
def ready(tiny_base: Path, tmp_path: Path) -> Comparison:
    """Both models loaded."""
    found = comparison(tiny_base, tmp_path / "cache")
    found.prepare()
    assert (found.problem, found.state) == ("", "")
    return found


@pytest.fixture
def client(ready: Comparison) -> TestClient:
    """A browser without a window."""
    return TestClient(create_app(ready, ["sample has no challenger"]), base_url="http://127.0.0.1")


def test_a_query_gives_each_models_nearest_documents_with_their_rank_by_the_base(ready: Comparison) -> None:
    base, champion = ready.search(f"the {NEW_WORD}")["models"]
    assert [token for token, new in champion["tokens"] if new] == [NEW_WORD]
    assert not any(new for _, new in base["tokens"])
    # Its row is that of kidney, so the document with kidney is the same text to the champion.
    assert champion["nearest"][0]["text"] == "the kidney"
    assert champion["nearest"][0]["score"] == pytest.approx(1.0, abs=1e-5)
    assert [entry["base_rank"] for entry in base["nearest"]] == list(range(1, 11))
    order = [entry["text"] for entry in base["nearest"]]
    for entry in champion["nearest"]:
        if entry["text"] in order:
            assert entry["base_rank"] == 1 + order.index(entry["text"])
        else:
            assert entry["base_rank"] > len(order)


def test_the_base_reads_a_relation_as_its_description(ready: Comparison) -> None:
    base, champion = ready.search(f"dog {RELATION}")["models"]
    assert [token for token, _ in base["tokens"]] == ["dog", "is", "a", "kind", "of"]
    assert champion["tokens"] == [("dog", False), (RELATION, True)]


def test_two_texts_have_the_cosine_of_their_embeddings(ready: Comparison) -> None:
    found = ready.compare("a dog", "a cat")
    model = ready.ready[0][0].model
    left, right = model.encode(["a dog", "a cat"])
    assert found[0]["cosine"] == pytest.approx(
        float(left @ right / np.linalg.norm(left) / np.linalg.norm(right)), abs=1e-5
    )
    assert ready.compare(f"a {NEW_WORD}", "a kidney")[1]["cosine"] == pytest.approx(1.0, abs=1e-5)


def test_the_nearest_words_of_a_word_are_those_of_a_sort(ready: Comparison) -> None:
    base = ready.words("dog")[0]
    model = ready.ready[0][0]
    places, names = model._words
    rows = model._weight
    (near,) = nearest_rows(rows[model.model.tokenizer.convert_tokens_to_ids(["dog"])], rows[places], 13)
    expected = [names[place] for place, _ in near if names[place] != "dog"]
    assert [word for word, _ in base["nearest"]] == expected[:12]
    assert ready.words(NEW_WORD)[1]["nearest"][0] == ("kidney", pytest.approx(1.0, abs=1e-5))


def test_documents_are_embedded_once_for_each_model_and_set_of_documents(
    ready: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, vectors = ready.ready[0]

    def refuse(*args: object) -> None:
        raise AssertionError("embedded again")

    with monkeypatch.context() as patched:
        patched.setattr(type(model), "embed", refuse)
        assert (embedded(model, ready.documents, ready.cache) == vectors).all()
        with pytest.raises(AssertionError, match="embedded again"):
            embedded(model, corpora.Documents(TEXTS[:3], "others"), ready.cache)
        with pytest.raises(AssertionError, match="embedded again"):
            embedded(model, corpora.Documents([" ".join(TEXTS)], "one text of many"), ready.cache)


def test_a_model_that_does_not_load_is_reported_and_the_others_answer(tiny_base: Path, tmp_path: Path) -> None:
    found = comparison(tiny_base, tmp_path)
    load = found.load

    def fail(candidate: object, base: object) -> object:
        if base is not None:
            raise VocabgraftError("its weights are damaged")
        return load(candidate, base)  # type: ignore[arg-type]

    found.load = fail  # type: ignore[assignment]
    found.prepare()
    client = TestClient(create_app(found, []), base_url="http://127.0.0.1")
    page = client.get("/", params={"q": "dog"}).text
    assert "Champion" in page and "its weights are damaged" in page
    assert page.count('class="model"') == 1


def test_a_page_whose_models_are_on_their_way_says_so_and_asks_again(tiny_base: Path, tmp_path: Path) -> None:
    client = TestClient(create_app(comparison(tiny_base, tmp_path), []), base_url="http://127.0.0.1")
    page = client.get("/").text
    assert "Not ready yet: starting" in page and 'http-equiv="refresh"' in page
    assert client.get("/", params={"q": "dog"}).status_code == 200


def test_hostile_text_is_shown_as_text(client: TestClient) -> None:
    for params in ({"q": HOSTILE}, {"a": HOSTILE, "b": '" onfocus="alert(1)'}, {"w": HOSTILE}):
        page = client.get("/", params=params).text
        assert "<script" not in page and " onfocus=" not in page.replace("&#34; onfocus=", "")
        assert "&lt;script&gt;" in page


def test_no_script_may_run_and_nothing_is_fetched(client: TestClient) -> None:
    answer = client.get("/", params={"q": "dog"})
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "script-src" not in policy
    assert "http://" not in answer.text and "https://" not in answer.text
    assert answer.headers["cache-control"] == "no-store"
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert client.get(path).status_code == 404


def test_another_sites_name_is_no_way_in(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_a_text_that_is_too_long_is_refused_with_what_is_allowed(client: TestClient) -> None:
    page = client.get("/", params={"q": "x" * (LONGEST + 1)}).text
    assert "2,001 characters; allowed: 2,000" in page
    assert 'class="model"' not in page


@pytest.mark.parametrize("form", ["txt", "csv", "jsonl", "parquet", "beir"])
def test_a_file_of_documents_is_read_in_each_format(tmp_path: Path, form: str) -> None:
    rows = [
        {"_id": str(place), "title": "", "text": text} for place, text in enumerate(["a dog", "", "a cat", "a dog"])
    ]
    path = tmp_path / f"docs.{form}"
    if form == "txt":
        path.write_text("".join(f"{row['text']}\n" for row in rows), encoding="utf-8")
    elif form == "csv":
        path.write_text("_id,text\n" + "".join(f"{row['_id']},{row['text']}\n" for row in rows), encoding="utf-8")
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path = tmp_path / "beir" if form == "beir" else path
        path.mkdir() if form == "beir" else None
        lines = path / "corpus.jsonl" if form == "beir" else path
        lines.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    assert read_corpus(path, ("text",)).texts == ["a dog", "a cat"]


def test_a_title_of_beir_stands_before_its_text_and_a_bad_line_is_named(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"_id": "1", "title": "Dogs", "text": "bark"}\n', encoding="utf-8")
    assert read_corpus(tmp_path, ("text",)).texts == ["Dogs bark"]
    corpus.write_text('{"_id": "1", "text": "bark"}\n[]\n', encoding="utf-8")
    with pytest.raises(VocabgraftError, match=r"corpus\.jsonl line 2"):
        read_corpus(tmp_path, ("text",))


def test_more_documents_than_allowed_are_cut_and_that_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "MOST", 3)
    path = tmp_path / "docs.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    found = read_corpus(path, ("text",))
    assert (found.texts, found.is_cut) == (TEXTS[:3], True)


def test_sigterm_ends_the_command_also_where_sigint_is_ignored(in_folder: Path) -> None:
    """A shell starts background jobs with SIGINT ignored."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from contextlib import contextmanager; from flows.service import ui\n"
        "ui.servers_of = lambda *ports: []\n"
        "ui.try_page = lambda *args: ui.Server('Try it', [], 'address', '', None)\n"
        "@contextmanager\ndef started(servers):\n"
        "    try:\n        yield []\n    finally:\n        print('ended', flush=True)\n"
        "ui.started = started; ui.require_running = lambda *args: None\n"
        "ui.serve(1, 2, 3, None, ())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Try it")
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
    assert "ended" in process.stdout.read()


def test_the_page_is_served_by_a_command_of_its_own_that_ends_on_sigterm(tiny_project: Path) -> None:
    (tiny_project / ".dvc").mkdir()
    (tiny_project / ".dvc" / "config").write_text(
        "[core]\n    no_scm = true\n    analytics = false\n", encoding="utf-8"
    )
    corpus = tiny_project / "docs.txt"
    corpus.write_text("a dog\na cat\n", encoding="utf-8")
    server = ui.try_page(free_port(), corpus, ("text",))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "sqlite:///none.db"}
    process = subprocess.Popen(server.command, env=environment)
    try:
        deadline = time.monotonic() + 120
        while not ui_answers(server.health):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)
    finally:
        process.kill()


def ui_answers(address: str) -> bool:
    """Whether the page is there."""
    from flows.service.servers import answers

    return answers(address)
