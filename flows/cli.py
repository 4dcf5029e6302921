"""The command `vocabgraft`: the table of commands, each imported when it is chosen, and the exit codes.

`--help` imports only typer and rich (0.2 s of CPU). Prefect, DVC, MLflow or torch would add seconds.
"""

import gc
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from vocabgraft.errors import VocabgraftError
from vocabgraft.printable import warn

USAGE_ERROR = 2
EXIT_CODES = """Exit codes:

0  done

1  a stage, a check or a point of a sweep failed

2  nothing was done: an option, a file, a setting or a gate prevents it

3  everything is done, but its report or log could not be written

130, 143  stopped by Ctrl-C or by SIGTERM"""
SETTINGS: dict[str, Any] = {"context_settings": {"help_option_names": ["-h", "--help"]}}


@dataclass(frozen=True)
class Entry:
    """A command: `module:function` below flows.commands, its one-line help, and an example.

    Attributes:
        passes_on: whether unknown arguments are passed on instead of refused.
    """

    target: str
    summary: str
    example: str
    passes_on: bool = False


@dataclass(frozen=True)
class Group:
    """Commands about one thing."""

    summary: str
    entries: "Table"


Table: TypeAlias = Mapping[str, Entry | Group]

COMMANDS: Table = {
    "run": Entry(
        "run:run",
        "Run the stages of dvc.yaml whose inputs changed.",
        "vocabgraft run --set train_adapter.epochs=2 --until evaluate_model",
    ),
    "new": Entry(
        "new:new",
        "Make a project of your own from your own files.",
        "vocabgraft new clinic --vocabulary words.csv --pairs pairs.csv --corpus notes.txt",
    ),
    "sweep": Entry(
        "sweep:sweep",
        "Run a grid of parameters, each point in a copy of the project.",
        "vocabgraft sweep sweep.yaml --jobs 4",
    ),
    "schedule": Entry(
        "schedule:schedule",
        "Run the pipeline at fixed times until Ctrl-C.",
        'vocabgraft schedule --cron "0 3 * * *" --timezone Europe/Berlin',
    ),
    "report": Entry(
        "report:report",
        "Write the report of the last run: one page that opens offline.",
        "vocabgraft report --out reports/report.html",
    ),
    "ui": Entry(
        "ui:ui",
        "Serve the pages of MLflow and Prefect, and one to try models on, until Ctrl-C.",
        "vocabgraft ui --corpus docs.jsonl --column body",
    ),
    "stage": Entry(
        "stage:stage",
        "Run one stage here, without DVC or Prefect.",
        "vocabgraft stage evaluate_model",
        passes_on=True,
    ),
    "export": Entry(
        "export:export_model",
        "Export a model to ONNX, and measure its agreement with the model.",
        "vocabgraft export models:/clinic@champion --to onnx --precision int8 --out clinic-onnx",
    ),
    "publish": Entry(
        "publish:publish_model",
        "Share a model on a model hub: files, card and vocabulary pack in one commit.",
        "vocabgraft publish models:/clinic@champion --repo clinic/minilm --license apache-2.0 --dry-run",
    ),
    "registry": Group(
        "The versions of the registered model.",
        {
            "list": Entry(
                "registry.versions:list_versions",
                "List the versions of the registered model.",
                "vocabgraft registry list --json",
            ),
            "promote": Entry(
                "registry.promote:promote_version",
                "Make a version the champion, if its gates hold.",
                'vocabgraft registry promote 7 --force --reason "the clinic asked for it"',
            ),
            "rollback": Entry(
                "registry.rollback:roll_back",
                "Make the previous champion the champion again.",
                'vocabgraft registry rollback --reason "complaints"',
            ),
            "compare": Entry(
                "registry.compare:compare_versions",
                "Compare two versions: what changed, embeddings of the same texts, and metrics.",
                'vocabgraft registry compare 6 7 --text "renal colic"',
            ),
            "prune": Entry(
                "registry.versions:prune_versions",
                "Delete old versions that have no alias, with their files.",
                "vocabgraft registry prune --keep 5",
            ),
            "relocate": Entry(
                "registry.versions:relocate_store",
                "Rewrite the paths that MLflow stored, after the folder was moved.",
                "vocabgraft registry relocate --to mlruns",
            ),
        },
    ),
    "pack": Group(
        "Vocabulary packs: new tokens apart from their base.",
        {
            "combine": Entry(
                "pack.combine:combine_packs",
                "Combine several packs for one base into one pack.",
                "vocabgraft pack combine kidney liver --out data/combined",
            ),
            "transfer": Entry(
                "pack.transfer:transfer_pack",
                "Rebuild a pack for another base model.",
                "vocabgraft pack transfer models:/clinic@champion --base intfloat/e5-small-v2 --out data/transferred",
            ),
            "inspect": Entry(
                "pack.inspect_pack:inspect_pack",
                "Show the tokens, base, adapter and license of a pack.",
                "vocabgraft pack inspect models:/clinic@champion",
            ),
        },
    ),
    "vocab": Group(
        "Choose words to add, or import them.",
        {
            "plan": Entry(
                "vocab.plan:plan_words",
                "Rank the words of a corpus by the tokens that adding them saves.",
                "vocabgraft vocab plan notes.txt --background wikipedia.txt --top 200",
            ),
            "import": Group(
                "Turn a published knowledge graph or ontology into raw files.",
                {
                    "conceptnet": Entry(
                        "vocab.import_data:import_conceptnet",
                        "Import assertions of ConceptNet 5 (gzip CSV) as triples.",
                        "vocabgraft vocab import conceptnet assertions.csv.gz --language en --min-weight 2",
                    ),
                    "obo": Entry(
                        "vocab.import_data:import_obo",
                        "Import an ontology in OBO 1.2 or 1.4 as words, pairs, triples and contexts.",
                        "vocabgraft vocab import obo hp.obo --max-tokens 500",
                    ),
                    "skos": Entry(
                        "vocab.import_data:import_skos",
                        "Import a SKOS thesaurus (.rdf, .xml, .nt, .ttl) as words, pairs, triples and contexts.",
                        "vocabgraft vocab import skos thesaurus.ttl --language de",
                    ),
                    "triples": Entry(
                        "vocab.import_data:import_triples",
                        "Import a plain file of triples (.tsv, .txt, .csv) as triples and relation tokens.",
                        "vocabgraft vocab import triples facts.tsv --columns relation,head,tail --relations IsA",
                    ),
                },
            ),
        },
    ),
    "index": Group(
        "Update an index of embeddings for a new model.",
        {
            "reembed": Entry(
                "index.reembed:reembed_index",
                "Update an index for a new model; only texts with new tokens are encoded again.",
                "vocabgraft index reembed index.parquet --previous models:/clinic/6 --model models:/clinic/7 "
                "--out index-2.parquet",
            ),
            "impact": Entry(
                "index.impact:index_impact",
                "Show which share of an index stays valid with the extended tokenizer.",
                "vocabgraft index impact corpus.jsonl --column body",
            ),
        },
    ),
}


class Commands(TyperGroup):
    """A group that reads its commands from a table."""

    table: Table = COMMANDS

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name, with only its one-line help, so that listing commands imports nothing."""
        entry = self.table.get(cmd_name)
        return None if entry is None else TyperCommand(cmd_name, help=entry.summary)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that the arguments choose."""
        if args[0] not in self.table:
            ctx.fail(f"there is no command {args[0]!r}; allowed: {', '.join(self.table)}")
        return args[0], _load(args[0], self.table[args[0]]), args[1:]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Show the help if no command is given."""
        return super().parse_args(ctx, args or ["--help"])

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Run the chosen command and end the process; a user's mistake is one line on stderr."""
        try:
            code = super().main(*args, **(options | {"standalone_mode": False}))
        except typer.TyperException as error:
            context = getattr(error, "ctx", None)
            where = context.command_path if context is not None else "vocabgraft"
            _fail(f"{where}: {error.format_message()} ({where} --help shows what is allowed)")
        except VocabgraftError as error:
            _fail(f"vocabgraft: {error}")
        except OSError as error:
            _fail(f"vocabgraft: {error.filename or 'a file or an address'} cannot be read or written: {error}")
        sys.exit(code or 0)


app = typer.Typer(
    name="vocabgraft",
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=EXIT_CODES,
    subcommand_metavar="COMMAND",
    **SETTINGS,
)


@app.callback()
def _vocabgraft() -> None:
    """Graft new words onto a sentence-embedding model, and prove that nothing else changed.

    MODEL and PACK are a folder, a Hub id, package:MODULE/FOLDER or models:/NAME@ALIAS.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command line; ends the process with the command's exit code."""
    try:
        app(args=arguments, prog_name="vocabgraft")
    finally:
        # Collecting Prefect's objects at exit would take half a second.
        gc.freeze()
    raise AssertionError


def _load(name: str, entry: Entry | Group) -> Any:
    if isinstance(entry, Group):
        group = Commands(name=name, help=entry.summary, rich_markup_mode="rich")
        group.table = entry.entries
        return group
    from tasks.support.stage import switch_telemetry_off

    switch_telemetry_off()
    module, _, function = entry.target.partition(":")
    single = typer.Typer(add_completion=False, rich_markup_mode="rich")
    settings = SETTINGS["context_settings"] | (
        {"allow_extra_args": True, "ignore_unknown_options": True} if entry.passes_on else {}
    )
    register = single.command(name, epilog=f"Example: {entry.example}", context_settings=settings)
    register(getattr(importlib.import_module(f"flows.commands.{module}"), function))
    return get_command(single)


def _fail(message: str) -> NoReturn:
    warn(message)
    sys.exit(USAGE_ERROR)


if __name__ == "__main__":
    main()
