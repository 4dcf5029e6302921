"""Descriptions of relations in plain words, from which their tokens are initialized."""

import re
from types import MappingProxyType

# The relations of ConceptNet 5 (github.com/commonsense/conceptnet5/wiki/Relations); OBO and SKOS share some of them.
DESCRIPTIONS = MappingProxyType(
    {
        "RelatedTo": "is related to",
        "FormOf": "is a form of the word",
        "IsA": "is a kind of",
        "PartOf": "is a part of",
        "HasA": "has as one of its parts",
        "HasPart": "has as one of its parts",
        "UsedFor": "is used for",
        "CapableOf": "is able to",
        "AtLocation": "is found in or at",
        "Causes": "leads to or causes",
        "HasSubevent": "includes the step or event",
        "HasFirstSubevent": "begins with the step",
        "HasLastSubevent": "ends with the step",
        "HasPrerequisite": "first needs",
        "HasProperty": "can be described as",
        "MotivatedByGoal": "is done in order to",
        "ObstructedBy": "can be prevented by",
        "Desires": "wants",
        "CreatedBy": "is created by",
        "Synonym": "means the same as",
        "Antonym": "is the opposite of",
        "DistinctFrom": "is not the same as",
        "DerivedFrom": "is a word derived from",
        "SymbolOf": "is a symbol of",
        "DefinedAs": "is defined as",
        "MannerOf": "is a way to",
        "LocatedNear": "is found near",
        "HasContext": "is a word used in the field of",
        "SimilarTo": "is similar to",
        "EtymologicallyRelatedTo": "has an origin in common with the word",
        "EtymologicallyDerivedFrom": "has its origin in the word",
        "CausesDesire": "makes someone want",
        "MadeOf": "is made of",
        "ReceivesAction": "can be",
        "InstanceOf": "is an example of",
        "InheritsFrom": "inherits from",
        "Entails": "always involves",
        "NotDesires": "does not want",
        "NotUsedFor": "is not used for",
        "NotCapableOf": "is not able to",
        "NotHasProperty": "cannot be described as",
        "NotIsA": "is not a kind of",
        "NotHasA": "does not have",
        "LocationOfAction": "is the place of the action",
        "capital": "has as its capital",
        "field": "works in the field of",
        "genre": "belongs to the genre",
        "genus": "belongs to the genus",
        "influencedBy": "was influenced by",
        "knownFor": "is known for",
        "language": "has as its language",
        "leader": "has as its leader",
        "occupation": "has as an occupation",
        "product": "makes the product",
    }
)

# For these, "A relation B" and "B relation A" mean the same.
SYMMETRIC = frozenset("RelatedTo Synonym Antonym DistinctFrom LocatedNear SimilarTo EtymologicallyRelatedTo".split())


def describe_relation(name: str) -> str:
    """A relation's name in plain words: from the table, or from its camel-case parts (`HasRole`: `has role`)."""
    return DESCRIPTIONS.get(name) or " ".join(_parts(name)).lower() or name


def relation_name(identifier: str) -> str:
    """A relation's identifier or label in camel case: `part_of`, `part of` and `PartOf` become `PartOf`."""
    words = re.findall(r"[^\W_]+", identifier)
    return "".join(word[:1].upper() + word[1:] for word in words)


def _parts(name: str) -> list[str]:
    """Split before an upper-case letter that follows a lower-case one or starts a word after capitals."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[\W_]+", " ", name).split()
