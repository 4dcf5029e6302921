"""`vocabgraft schedule`: the pipeline at fixed times."""

from typing import Annotated, Literal

from typer import Option

from flows.service.schedule import DEFAULT_CRON, DEFAULT_PORT, FLOW, serve_here


def schedule(
    cron: Annotated[str, Option(help="When it runs, as a cron line.")] = DEFAULT_CRON,
    timezone: Annotated[
        str | None, Option(metavar="ZONE", help="Time zone of --cron, e.g. Europe/Berlin. Default: this machine's.")
    ] = None,
    overlap: Annotated[
        Literal["queue", "skip"], Option(help="What to do with a run that is due while another is running.")
    ] = "queue",
    name: Annotated[str, Option(metavar="NAME", help=f"Name of the deployment, {FLOW}/NAME.")] = "schedule",
    port: Annotated[int, Option(metavar="N", help="Port of the Prefect server, if one is started.")] = DEFAULT_PORT,
) -> None:
    """Run the pipeline at fixed times until Ctrl-C.

    It uses the Prefect server of PREFECT_API_URL, or one on this machine, or starts one.
    """
    serve_here(cron, timezone, name, overlap, port)
