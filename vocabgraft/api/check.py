"""`vg.check`: runs the pipeline's consistency checks on a model in memory."""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vocabgraft.api.extend import refused, resolve_model
from vocabgraft.api.report import TrainingRecord, VocabularyReport, ids_of, report_of
from vocabgraft.api.words import as_new_tokens
from vocabgraft.checks.result import count_verdicts, describe_counts
from vocabgraft.checks.runner import Check
from vocabgraft.config.stages import CheckConsistencyParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.saving import ADAPTER_CONFIG_NAME, save_model
from vocabgraft.packs.gate import Chain, check_chain, write_chain
from vocabgraft.packs.pack import Pack, PackToken, identify
from vocabgraft.storage.artifacts import new_folder, read_json, write_json
from vocabgraft.token_embeddings.distill import TEMPLATES
from vocabgraft.tokens.new_token import NewToken

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

WAIVED = {"onnx_export": "a model in memory has no ONNX export"}
UNTRAINED = "the model was not trained after its extension"
# The default text without a new word. No check depends on its content.
PLAIN = ("it", "a text about something else", "they spoke of it today")


class FailedChecksError(VocabgraftError):
    """At least one check failed; the message names each one, with what was seen and what is allowed."""


@dataclass(frozen=True, repr=False)
class CheckReport:
    """The result of every check of a model.

    Attributes:
        checks: all of them, in order, each with `name`, `verdict`, `figure`, `limit`, `protects` and `details`.
    """

    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return self._of("failed")

    @property
    def passed(self) -> tuple[Check, ...]:
        """The checks that passed."""
        return self._of("passed")

    @property
    def too_few_to_judge(self) -> tuple[Check, ...]:
        """The checks with too few tokens, texts or triples to judge, each with its `reason`."""
        return self._of("too few to judge")

    @property
    def not_applied(self) -> tuple[Check, ...]:
        """The checks that were waived or do not apply to the model, each with its `reason`."""
        return (*self._of("waived"), *self._of("does not apply"))

    def raise_for_failures(self) -> None:
        """Raise FailedChecksError if a check failed."""
        if self.failed:
            raise FailedChecksError(repr(self))

    def __repr__(self) -> str:
        """The number of checks by verdict, and each failure with the value seen and the value allowed."""
        head = describe_counts(count_verdicts(check.verdict for check in self.checks))
        return "\n".join([head, *(line for check in self.failed for line in _lines(check))])

    def _of(self, verdict: str) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.verdict == verdict)


def check(
    model: "SentenceTransformer",
    *,
    base: "SentenceTransformer | str | Path",
    texts: Sequence[str] = (),
    tokens: Sequence[NewToken | str] | None = None,
    params: CheckConsistencyParams | Mapping[str, Any] | None = None,
) -> CheckReport:
    """Run the consistency checks of the pipeline on an extended model.

    They show, among other things, that texts without a new word keep their embedding bit for bit, that every new word
    is one token, that the model contains what was trained, and that the saved model loads in a fresh process.

    Args:
        model: extended, and merged if it was trained.
        base: the model that it extends.
        texts: texts to encode, with and without new words, in addition to those given to `extend`.
        tokens: the new words of a loaded model, as `extend` takes them. Omit them for a model that `extend` made.
        params: limits that differ from the defaults of `CheckConsistencyParams`, and checks to waive, each with a
            reason: `{"waived": {"new_rows_apart": "synonyms share a row"}}`.

    Raises:
        VocabgraftError: for a model with unknown new words or a PEFT adapter.
    """
    if getattr(model[0].auto_model, "peft_config", None):
        raise VocabgraftError("the model has a PEFT adapter; merge it first: vocabgraft.merge(model)")
    wanted = _new_tokens(model, tokens)
    report = report_of(model)
    limits = _limits(params, report)
    probes = [*texts, *(report.probe_texts if report else ())]
    probes += [template.format(token.text) for token in wanted for template in TEMPLATES]
    with tempfile.TemporaryDirectory() as folder:
        chain = _write(model, resolve_model(base), wanted, Path(folder))
        return CheckReport(tuple(check_chain(chain, [*probes, *PLAIN], limits)))


def _new_tokens(model: "SentenceTransformer", tokens: Sequence[NewToken | str] | None) -> list[NewToken]:
    report = report_of(model)
    if report is None:
        given = {token.text: token for token in as_new_tokens(tokens)} if tokens else {}
        return [given[text] for text in ids_of(model, list(given) if tokens is not None else None)]
    if tokens is not None:
        raise VocabgraftError("extend() made this model, so its new words are known; leave tokens out")
    return [token.new_token for token in report.tokens]


def _limits(
    params: CheckConsistencyParams | Mapping[str, Any] | None, report: VocabularyReport | None
) -> CheckConsistencyParams:
    try:
        given = CheckConsistencyParams.model_validate(params if params is not None else {})
    except ValidationError as error:
        raise refused("check", error) from error
    waived = dict(WAIVED)
    training = report.training if report else None
    if training is None:
        waived |= {"trained_differs": UNTRAINED, "adapter_moved": UNTRAINED}
    return given.model_copy(update={"waived": waived | given.waived})


def _write(model: "SentenceTransformer", base: "SentenceTransformer", tokens: Sequence[NewToken], root: Path) -> Chain:
    """The folders of a run that would have made this model, with the model itself as the merged one."""
    report = report_of(model)
    rows = model[0].auto_model.get_input_embeddings().weight.detach().cpu()
    rows = rows[list(ids_of(model, [token.text for token in tokens]).values())].clone()
    with new_folder(root / "base") as work:
        save_model(base, work)
    pack = Pack("checked", identify(base, "base"), tuple(PackToken.of(token) for token in tokens), rows)
    training = report.training if report else None
    start = report.initial_rows if report else rows
    chain = write_chain(root / "base", pack, root, start)
    shutil.rmtree(chain.folders.merged)
    with new_folder(chain.folders.merged) as work:
        save_model(model, work)
    if training is not None and training.method != "tokens":
        _replace_adapter(chain, training)
    return chain if training is None else replace(chain, method=training.method)


def _replace_adapter(chain: Chain, training: TrainingRecord) -> None:
    """Replace the adapter of rows by the trained adapter, or with `full` by the model itself."""
    adapter = chain.folders.adapter
    shutil.rmtree(adapter)
    with new_folder(adapter) as work:
        ignored = _own_weights if training.adapter else None
        # The model below an adapter has no gate.
        source = chain.folders.resized if training.method == "gated" else chain.folders.merged
        shutil.copytree(source, work, dirs_exist_ok=True, ignore=ignored)
        for name, content in training.adapter.items():
            (work / name).write_bytes(content)
        if training.adapter:
            resized = Path(os.path.relpath(chain.folders.resized)).as_posix()
            stored = read_json(work / ADAPTER_CONFIG_NAME)
            write_json(work / ADAPTER_CONFIG_NAME, {**stored, "base_model_name_or_path": resized})
        record = {
            "method": training.method,
            "tokens_without_training_text": list(training.untrained),
            "set_back": list(training.set_back),
        }
        write_json(work / "report.json", record)


def _own_weights(folder: str, names: list[str]) -> list[str]:
    """The files that make a folder a whole transformer and not an adapter."""
    if "modules.json" not in names:
        return []
    return [name for name in names if name in ("config.json", "manifest.json") or name.startswith("model")]


def _lines(check: Check) -> list[str]:
    seen = check.reason if check.figure is None else f"{check.figure:.3g}, allowed {check.limit}"
    return [f"  {check.name}: {seen}; {check.protects}", *(f"    {detail}" for detail in check.details)]
