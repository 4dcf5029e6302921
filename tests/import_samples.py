"""Samples in the formats that importers read, of own making: rocks, and a thing or two about animals."""

import gzip
import json
from pathlib import Path

ROCKS = (
    "granodiorite anorthosite ignimbrite peridotite amphibolite serpentinite conglomerate travertine kimberlite "
    "obsidianite phonolite trachyte rhyodacite greywacke mudstonite dolostone harzburgite lherzolite"
).split()

OBO_HEADER = """format-version: 1.2
data-version: releases/2026-01-01
date: 01:01:2026 12:00
saved-by: nobody
synonymtypedef: field_name "a name used in the field" EXACT
default-namespace: rocks
ontology: rocks
! a comment line

"""

# Escapes, modifiers, comments, synonym types, a term that is withdrawn, one without a name, one that is not here.
OBO_ODD_TERMS = r"""[Term]
id: RK:0000001 ! the root
name: rock {source="a \"book\""} ! what all of them are
def: "A piece of the crust\, called \"stone\" by some\;\nmade of one\Wor more minerals." [RK:a\,b "A, b"] {source="x"}
synonym: "stone" EXACT []
synonym: "Gestein" RELATED field_name [RK:de] {lang="de"}
synonym: "boulder \{large\}" NARROW []
synonym: "thing" BROAD []
synonym: "rubble" []
comment: not read: it has colons, [brackets] and "quotes"
xref: WIKI:Rock

[Term]
id: RK:0000002
name: lava {2\,4}
def: "Molten rock that has reached the surface." []
is_a: RK:0000001 {is_inferred="true"} ! rock
relationship: develops_from RK:0000099 {cardinality="1"} ! magma
relationship: RO:0002202 RK:0000001 ! rock
intersection_of: RK:0000001 ! rock

[Term]
id: RK:0000003
name: firestone
is_obsolete: true
replaced_by: RK:0000002

[Term]
id: RK:0000004
is_a: RK:0000001

[Term]
id: RK:0000005
name: pumice
is_a: RK:0000003 ! firestone
relationship: part_of RK:0000077

"""

OBO_TYPEDEFS = """[Typedef]
id: part_of
name: part of
xref: BFO:0000050
is_transitive: true

[Typedef]
id: RO:0002202
name: develops from
"""


def obo_text() -> str:
    """A whole OBO file: the odd terms above, and rocks enough for words and relations to be used often."""
    return OBO_HEADER + OBO_ODD_TERMS + "".join(map(_rock_stanza, range(len(ROCKS)))) + OBO_TYPEDEFS


def _rock_stanza(number: int) -> str:
    name = ROCKS[number]
    lines = [
        "[Term]",
        f"id: RK:{100 + number:07}",
        f"name: {name}",
        f'def: "{name.capitalize()} is a rock of layer {number}, cut by geologists." [RK:ref]',
        f'synonym: "{name} stone" EXACT []',
        f'synonym: "fresh {name}" RELATED []',
        f'synonym: "weathered {name} of the geologists" EXACT []',
        "is_a: RK:0000001 ! rock",
        f"relationship: part_of RK:{100 + (number + 1) % len(ROCKS):07} ! another",
    ]
    return "\n".join([*lines, "", ""])


def assertion(relation: str, start: str, end: str, weight: float = 1.0) -> str:
    """A line of ConceptNet's assertions; `start` and `end` are given without `/c/`."""
    ends = [uri if "://" in uri else f"/c/{uri}" for uri in (start, end)]
    metadata = {
        "dataset": "/d/conceptnet/4/en",
        "license": "cc:by/4.0",
        "sources": [{"contributor": "/s/contributor/omcs/nobody"}],
        "surfaceText": f"[[{start}]] has to do with [[{end}]]",
        "weight": weight,
    }
    return "\t".join([f"/a/[/r/{relation}/,{ends[0]}/,{ends[1]}/]", f"/r/{relation}", *ends, json.dumps(metadata)])


def assertions() -> list[str]:
    """Assertions of several languages, weights and relations; IsA and UsedFor are frequent enough to be kept."""
    animals = "dog cat horse cow goat hen duck trout robin eel".split()
    return [
        assertion("Antonym", "en/hot", "en/cold", 3.0),
        assertion("Synonym", "en/cold", "en/hot", 1.5),
        assertion("IsA", "en/dog/n/wn/animal", "en/domestic_animal", 2.0),
        assertion("IsA", "en/dog", "en/domestic_animal/n", 4.5),
        assertion("IsA", "fr/chien", "fr/animal", 9.0),
        assertion("Synonym", "fr/chien", "en/dog", 2.0),
        assertion("ExternalURL", "en/dog", "http://dbpedia.org/resource/Dog"),
        *(assertion("IsA", f"en/{name}/n", "en/kept_animal", 2.0 + place) for place, name in enumerate(animals)),
        *(assertion("UsedFor", f"en/{name}", "en/feeding_people", 1.0) for name in animals),
        *(assertion("dbpedia/knownFor", f"en/{name}", "en/its_voice", 0.5) for name in animals),
    ]


def write_gzip(path: Path, lines: list[str]) -> Path:
    """Write lines as a gzip file."""
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return path


SKOS_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:owl="http://www.w3.org/2002/07/owl#"
    xmlns:skos="http://www.w3.org/2004/02/skos/core#" xmlns:dct="http://purl.org/dc/terms/">
"""

# Typed nodes and descriptions, nested nodes, languages, notes as nodes, a scheme and a deprecated concept.
SKOS_ODD_CONCEPTS = """  <skos:ConceptScheme rdf:about="http://x.org/rocks">
    <skos:prefLabel xml:lang="en">the scheme of rocks</skos:prefLabel>
  </skos:ConceptScheme>
  <skos:Concept rdf:about="http://x.org/1">
    <skos:prefLabel xml:lang="de">Gestein</skos:prefLabel>
    <skos:prefLabel xml:lang="en-GB">grey rock</skos:prefLabel>
    <skos:prefLabel xml:lang="en">gray rock</skos:prefLabel>
    <skos:altLabel xml:lang="en">gray   stone</skos:altLabel>
    <skos:altLabel xml:lang="fr">pierre grise</skos:altLabel>
    <skos:hiddenLabel xml:lang="en">gray rcok</skos:hiddenLabel>
    <skos:definition xml:lang="en">A solid piece &amp; part of the crust.</skos:definition>
    <skos:scopeNote rdf:parseType="Resource"><rdf:value xml:lang="en">Use it for any stone.</rdf:value></skos:scopeNote>
    <skos:narrower rdf:resource="http://x.org/2"/>
  </skos:Concept>
  <rdf:Description rdf:about="http://x.org/2" xml:lang="en">
    <rdf:type rdf:resource="http://www.w3.org/2004/02/skos/core#Concept"/>
    <skos:prefLabel>lava</skos:prefLabel>
    <skos:broader rdf:resource="http://x.org/1"/>
    <skos:related>
      <skos:Concept rdf:about="http://x.org/3">
        <skos:prefLabel>magma</skos:prefLabel>
        <skos:related rdf:resource="http://x.org/2"/>
      </skos:Concept>
    </skos:related>
    <skos:broader rdf:resource="http://x.org/4"/>
  </rdf:Description>
  <skos:Concept rdf:about="http://x.org/4">
    <skos:prefLabel xml:lang="en">firestone</skos:prefLabel>
    <owl:deprecated rdf:datatype="http://www.w3.org/2001/XMLSchema#boolean">true</owl:deprecated>
  </skos:Concept>
"""


def skos_xml() -> str:
    """A whole SKOS file in RDF/XML."""
    return SKOS_HEAD + SKOS_ODD_CONCEPTS + "".join(map(_rock_concept, range(len(ROCKS)))) + "</rdf:RDF>\n"


def _rock_concept(number: int) -> str:
    name = ROCKS[number]
    following = f"http://x.org/{100 + (number + 1) % len(ROCKS)}"
    return f"""  <skos:Concept rdf:about="http://x.org/{100 + number}">
    <skos:prefLabel xml:lang="en">{name}</skos:prefLabel>
    <skos:altLabel xml:lang="en">{name} stone</skos:altLabel>
    <skos:altLabel xml:lang="en">fresh {name}</skos:altLabel>
    <skos:hiddenLabel xml:lang="en">weathered {name} of the geologists</skos:hiddenLabel>
    <skos:definition xml:lang="en">{name.capitalize()} is a rock of layer {number}, cut by geologists.</skos:definition>
    <skos:broader rdf:resource="http://x.org/1"/>
    <skos:related rdf:resource="{following}"/>
  </skos:Concept>
"""


N_TRIPLES = r"""# a comment
<http://x.org/1> <http://www.w3.org/1999/02/22-rdf-syntax-ns#type> <http://www.w3.org/2004/02/skos/core#Concept> .
<http://x.org/1> <http://www.w3.org/2004/02/skos/core#prefLabel> "rock"@en .
<http://x.org/1> <http://www.w3.org/2004/02/skos/core#prefLabel> "roche"@fr .
<http://x.org/1> <http://www.w3.org/2004/02/skos/core#altLabel> "st\u00F6ne \"grey\"\t."@en .
<http://x.org/2> <http://www.w3.org/2004/02/skos/core#prefLabel> "lava"^^<http://www.w3.org/2001/XMLSchema#string>.

<http://x.org/2> <http://www.w3.org/2004/02/skos/core#broader> <http://x.org/1> . # another
_:b1 <http://www.w3.org/2004/02/skos/core#related> _:b2 .
"""

TURTLE = """@prefix skos: <http://www.w3.org/2004/02/skos/core#> .
<http://x.org/1> a skos:Concept ; skos:prefLabel "rock"@en , "roche"@fr ; skos:altLabel "stone"@en .
<http://x.org/2> a skos:Concept ; skos:prefLabel "lava"@en ; skos:broader <http://x.org/1> .
"""

ENTITY_BOMB = """<?xml version="1.0"?>
<!DOCTYPE rdf:RDF [
  <!ENTITY a "lava lava lava lava lava lava lava lava lava lava">
  <!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
  <!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">
  <!ENTITY d SYSTEM "file:///etc/hostname">
]>
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:skos="http://www.w3.org/2004/02/skos/core#">
  <skos:Concept rdf:about="http://x.org/1"><skos:prefLabel xml:lang="en">&c;&d;</skos:prefLabel></skos:Concept>
</rdf:RDF>
"""
