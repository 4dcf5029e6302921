"""When a check does not apply, in one place: each function gives the reason, or nothing where the check applies."""

from vocabgraft.checks.context import Evidence
from vocabgraft.config.training import ROW_METHODS
from vocabgraft.export.graph import missing_packages
from vocabgraft.models.base import carried_types, own_module_types
from vocabgraft.models.extra_modules import custom_modules
from vocabgraft.tokens.new_token import relation_token
from vocabgraft.triples.relation_ranks import HeldOutTriples


def never(_: Evidence) -> str:
    """Of a check that applies to every model."""
    return ""


def no_row_trained(evidence: Evidence) -> str:
    """Of a check of what training did to rows."""
    if reason := nothing_trained(evidence):
        return reason
    trained = evidence.method in (*ROW_METHODS, "full")
    return "" if trained else f"method {evidence.method} trains no row"


def nothing_trained(evidence: Evidence) -> str:
    """Of a check of what training did."""
    return "" if evidence.trained else "nothing was trained: there are no examples or no epochs"


def no_trained_adapter(evidence: Evidence) -> str:
    """Of a check of what training did to the adapter."""
    return nothing_trained(evidence) or no_adapter(evidence)


def all_trained(evidence: Evidence) -> str:
    """Of a check that the base's own rows stay."""
    return "method full trains every weight" if evidence.method == "full" else ""


def ratio_tells_nothing(evidence: Evidence) -> str:
    """Skip a check of attention sinks if the base's own words come near to the first token's activation."""
    limits = evidence.sink_limits
    if limits.tell:
        return ""
    return f"the base's own words reach {limits.usual:.2f} of the first token's activation, so the ratio says nothing"


def no_adapter(evidence: Evidence) -> str:
    """Of a check of the adapter."""
    return "method full has no adapter" if evidence.method == "full" else ""


def not_rows_alone(evidence: Evidence) -> str:
    """Of a check that holds where the base's own weights stay."""
    return "" if evidence.method == "tokens" else f"method {evidence.method} trains more than rows"


def every_text_moves(evidence: Evidence) -> str:
    """Of a check that holds where a text without a new token keeps its embedding."""
    if reason := not_rows_alone(evidence):
        return f"{reason}, and moves every text"
    return "custom modules were trained, and they move every text" if custom_modules(evidence.model("merged")) else ""


def own_classes(evidence: Evidence) -> str:
    """Of a check in a process that has stock sentence-transformers alone."""
    folder = evidence.folders.merged
    if not (names := sorted(set(own_module_types(folder)) - set(carried_types(folder)))):
        return ""
    return (
        f"the model needs {', '.join(names)}, which a process without the project does not have; "
        "register_model.gates.allow_own_modules decides on that"
    )


def no_onnx(_: Evidence) -> str:
    """Skip the check of the export where its packages are not installed."""
    absent = missing_packages()
    return f"{', '.join(absent)} is not installed; pip install 'vocabgraft[onnx]'" if absent else ""


def none_described(evidence: Evidence) -> str:
    """Of a check of what descriptions say."""
    return "" if any(token.description.strip() for token in evidence.tokens) else "no new token has a description"


def no_relation_trained(evidence: Evidence) -> str:
    """Of a check of relations."""
    if reason := nothing_trained(evidence):
        return reason
    trained = any(trained_relations(evidence, triples) for triples in evidence.triples)
    return "" if trained else "no dataset of triples has a relation whose token trains"


def trained_relations(evidence: Evidence, triples: HeldOutTriples) -> set[str]:
    """The tokens of a dataset's relations that train."""
    return {token.text for token in evidence.tokens} & {relation_token(name) for name in triples.relations}
