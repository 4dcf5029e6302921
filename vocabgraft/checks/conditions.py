"""When a check does not apply. Each function returns the reason, or "" if the check applies."""

from vocabgraft.checks.context import Evidence
from vocabgraft.config.training import ROW_METHODS, STILL_METHODS
from vocabgraft.errors import VocabgraftError
from vocabgraft.export.graph import missing_packages, parts_of
from vocabgraft.models.base import carried_types, own_module_types
from vocabgraft.models.extra_modules import custom_modules
from vocabgraft.tokens.new_token import relation_token
from vocabgraft.triples.relation_ranks import HeldOutTriples


def never(_: Evidence) -> str:
    """For checks that apply to every model."""
    return ""


def no_row_trained(evidence: Evidence) -> str:
    """Skip a check of trained rows if the method trains none."""
    if reason := nothing_trained(evidence):
        return reason
    trained = evidence.method in (*ROW_METHODS, "full")
    return "" if trained else f"method {evidence.method} trains no row"


def nothing_trained(evidence: Evidence) -> str:
    """Skip a check of the training if nothing was trained."""
    return "" if evidence.trained else "nothing was trained: there are no examples or no epochs"


def no_trained_adapter(evidence: Evidence) -> str:
    """Skip a check of the trained adapter if there is none."""
    return nothing_trained(evidence) or no_adapter(evidence)


def all_trained(evidence: Evidence) -> str:
    """Skip a check of the base's own rows if every weight is trained."""
    return "method full trains every weight" if evidence.method == "full" else ""


def ratio_tells_nothing(evidence: Evidence) -> str:
    """Skip a check of attention sinks if the base's own words come close to the first token's activation."""
    limits = evidence.sink_limits
    if limits.tell:
        return ""
    return f"the base's own words reach {limits.usual:.2f} of the first token's activation, so the ratio shows nothing"


def no_adapter(evidence: Evidence) -> str:
    """Skip a check of the adapter if there is none."""
    return "method full has no adapter" if evidence.method == "full" else ""


def not_rows_alone(evidence: Evidence) -> str:
    """Skip a check if more than rows is trained."""
    return "" if evidence.method == "tokens" else f"method {evidence.method} trains more than rows"


def every_text_moves(evidence: Evidence) -> str:
    """Skip a check of untouched texts if every text's embedding changes."""
    if evidence.method not in STILL_METHODS:
        return f"{not_rows_alone(evidence)}, and changes the embedding of every text"
    return (
        "custom modules were trained, and they change the embedding of every text"
        if custom_modules(evidence.model("merged"))
        else ""
    )


def own_classes(evidence: Evidence) -> str:
    """Skip a check in a process with only stock sentence-transformers if the model needs classes that it lacks."""
    folder = evidence.folders.merged
    if not (names := sorted(set(own_module_types(folder)) - set(carried_types(folder)))):
        return ""
    return (
        f"the model needs {', '.join(names)}, which a process without the project does not have; "
        "register_model.gates.allow_own_modules says whether it may become champion"
    )


def no_onnx(evidence: Evidence) -> str:
    """Skip the check of the export if its packages are not installed or no ONNX graph can hold the model's modules."""
    if absent := missing_packages():
        return f"{', '.join(absent)} is not installed; pip install 'vocabgraft[onnx]'"
    try:
        parts_of(evidence.model("merged"))
    except VocabgraftError as error:
        # A model that does not load has failed artifacts_load.
        return str(error)
    return ""


def none_described(evidence: Evidence) -> str:
    """Skip a check of descriptions if there are none."""
    return "" if any(token.description.strip() for token in evidence.tokens) else "no new token has a description"


def no_relation_trained(evidence: Evidence) -> str:
    """Skip a check of relations if none was trained."""
    if reason := nothing_trained(evidence):
        return reason
    trained = any(trained_relations(evidence, triples) for triples in evidence.triples)
    return "" if trained else "no dataset of triples has a relation whose token was trained"


def trained_relations(evidence: Evidence, triples: HeldOutTriples) -> set[str]:
    """The trained tokens of a dataset's relations."""
    return {token.text for token in evidence.tokens} & {relation_token(name) for name in triples.relations}
