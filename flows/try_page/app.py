"""The page as a web application: three forms, no script, nothing fetched from elsewhere."""

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.middleware.trustedhost import TrustedHostMiddleware
from typer import Option, Typer

from flows.reporting.numbers import capital, counted, figure
from flows.reporting.page import TEMPLATES as REPORT_TEMPLATES
from flows.try_page.comparison import Comparison
from flows.try_page.documents import Documents, held_out_documents, read_corpus
from flows.try_page.models import Candidate, TryModel, find_candidates, load_candidate
from vocabgraft.config.params import PARAMS_FILE, load_params
from vocabgraft.errors import VocabgraftError

TEMPLATES = Path(__file__).parent / "templates"
HOST = "127.0.0.1"
LONGEST = 2000
SECONDS_TO_END = 3
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # A query may be private.
    "Cache-Control": "no-store",
}


def create_app(comparison: Comparison, notes: list[str]) -> FastAPI:
    """The application.

    Args:
        comparison: of the models, ready or on the way.
        notes: what a person should know of them.
    """
    # Its pages of documentation would ask another host for their scripts.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # Another site's name that points here is no way in.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    page = _environment().get_template("try.html.jinja")
    style = Markup("".join((folder / name).read_text(encoding="utf-8") for folder, name in STYLES))

    @app.middleware("http")
    async def with_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    @app.get("/health")
    def health() -> PlainTextResponse:
        return PlainTextResponse("ok")

    @app.get("/")
    def show(q: str = "", a: str = "", b: str = "", w: str = "") -> HTMLResponse:
        texts = {"q": q.strip(), "a": a.strip(), "b": b.strip(), "w": w.strip()}
        too_long = [text for text in texts.values() if len(text) > LONGEST]
        return HTMLResponse(
            page.render(
                **(_nothing() if too_long else _answers(comparison, texts)),
                texts={name: text[:LONGEST] for name, text in texts.items()},
                too_long=f"A text has {len(too_long[0]):,} characters; allowed: {LONGEST:,}." if too_long else "",
                comparison=comparison,
                notes=notes,
                style=style,
            )
        )

    return app


STYLES = ((REPORT_TEMPLATES, "report.css"), (TEMPLATES, "try.css"))


def _environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters |= {"figure": figure, "counted": counted, "capital": capital}
    return environment


def _nothing() -> dict[str, Any]:
    return {"searched": None, "compared": None, "words": None}


def _answers(comparison: Comparison, texts: dict[str, str]) -> dict[str, Any]:
    return {
        "searched": comparison.search(texts["q"]) if texts["q"] else None,
        "compared": comparison.compare(texts["a"], texts["b"]) if texts["a"] and texts["b"] else None,
        "words": comparison.words(texts["w"]) if texts["w"] else None,
    }


main = Typer(add_completion=False, pretty_exceptions_enable=False)


@main.command()
def serve(
    port: Annotated[int, Option()],
    corpus: Annotated[Path | None, Option()] = None,
    column: Annotated[list[str] | None, Option()] = None,
) -> None:
    """Serve the page on this machine alone until SIGTERM."""
    import uvicorn

    try:
        comparison, notes = _comparison(Path(), corpus, tuple(column or ("text",)))
    except VocabgraftError as error:
        if corpus is not None:
            raise
        # Before the first run there is nothing to search; the page says so, and the other servers are of use.
        comparison, notes = (
            Comparison([], Documents([], ""), _nothing_to_load, problem=f"{error}. Then start again."),
            [],
        )
    # A daemon: a model on its way does not keep the process from ending.
    threading.Thread(target=comparison.prepare, daemon=True).start()
    uvicorn.run(
        create_app(comparison, notes),
        host=HOST,
        port=port,
        log_level="warning",
        # Queries stay out of the log.
        access_log=False,
        timeout_graceful_shutdown=SECONDS_TO_END,
    )


def _comparison(root: Path, corpus: Path | None, columns: tuple[str, ...]) -> tuple[Comparison, list[str]]:
    params = load_params(root / PARAMS_FILE)
    documents = read_corpus(corpus, columns) if corpus else held_out_documents(root)
    candidates, notes = find_candidates(params, root)

    def load(candidate: Candidate, base: TryModel | None) -> TryModel:
        return load_candidate(candidate, params, base, root)

    return Comparison(candidates, documents, load), notes


def _nothing_to_load(candidate: Candidate, base: TryModel | None) -> TryModel:
    raise AssertionError(candidate)


if __name__ == "__main__":
    try:
        main()
    except VocabgraftError as error:
        raise SystemExit(f"{error}") from error
