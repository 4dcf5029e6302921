"""Keep a FAISS index valid after a new model: only the vectors of texts that hold a new word are replaced.

python examples/faiss_index.py PREVIOUS_MODEL NEW_MODEL        (pip install faiss-cpu)

FAISS keeps no texts, so these come from where you keep them: here a list.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import faiss
import numpy as np
from sentence_transformers import SentenceTransformer

from vocabgraft.index.model_diff import compare_models
from vocabgraft.index.reembed import updated_vectors

TEXTS = {
    10: "a dog on the beach",
    11: "the patient has nephrolithiasis",
    12: "low blood sugar in the morning",
    13: "nephrolithiasis with hydronephrosis",
}


def build(model: SentenceTransformer, texts: Mapping[int, str]) -> faiss.Index:
    """An index by id, as it was made with the previous model."""
    vectors = model.encode_document(list(texts.values()))
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.shape[1]))
    index.add_with_ids(vectors, np.array(list(texts)))
    return index


def update(
    index: faiss.Index, texts: Mapping[int, str], previous: SentenceTransformer, new: SentenceTransformer
) -> list[int]:
    """Replace what the new model embeds differently; gives the ids replaced."""
    changed = dict(updated_vectors(texts.items(), compare_models(previous, new), new))
    if changed:
        ids = np.array(list(changed))
        # The stubs know the C++ signature; the Python one takes an array of ids.
        index.remove_ids(ids)  # type: ignore[arg-type]
        index.add_with_ids(np.stack(list(changed.values())), ids)
    return list(changed)


def main() -> None:
    """Build an index with one model and update it for the other."""
    # Full paths: sentence-transformers takes other names for those of the Hub.
    previous, new = (SentenceTransformer(str(Path(name).resolve()), device="cpu") for name in sys.argv[1:3])
    index = build(previous, TEXTS)
    changed = update(index, TEXTS, previous, new)
    print(f"{len(changed)} of {index.ntotal} vectors replaced: {changed}")
    scores, ids = index.search(new.encode_query(["nephrolithiasis"]), 2)
    for score, number in zip(scores[0], ids[0], strict=True):
        print(f"{score:.3f} {TEXTS[int(number)]}")


if __name__ == "__main__":
    main()
