"""Losses over triples: their values, what they mask, what they refuse, and that they train."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.vocabgraft.conftest import Graft, load, lora_params
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.unnormalized import before_normalize, embed_pooled, encode_pooled, trailing_normalize, unwrapped
from vocabgraft.token_embeddings.trainable import fast_peft_rows, token_rows
from vocabgraft.training.adapters import add_adapter
from vocabgraft.training.embedding_cache import constant_texts
from vocabgraft.triples.hashes import hash_triples
from vocabgraft.triples.losses import TranslationLoss, TranslationRankingLoss, closed_form, similarities

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

HEADS = ["a dog", "the cat", "stone house", "blood", "dog"]
TAILS = ["animal", "animal", "house", "water", "fish"]
RELATIONS = ["<|IsA|>", "<|IsA|>", "->", "->", "->"]
TEXTS = ["a dog", "the nephrolith of the dog", "stone"]


def columns(model: "SentenceTransformer", rows: slice = slice(None)) -> list[dict[str, Any]]:
    """A batch as the trainer's collator makes it."""
    return [model.preprocess(texts[rows]) for texts in (HEADS, RELATIONS, TAILS)]


def pooled(model: "SentenceTransformer", texts: list[str]) -> torch.Tensor:
    """Embeddings before Normalize by the layers themselves."""
    features = model.preprocess(texts)
    for layer in list(model.children())[:2]:
        features = layer(features)
    embedded: torch.Tensor = features["sentence_embedding"]
    return embedded


@pytest.fixture
def model(graft: Graft) -> "SentenceTransformer":
    """The resized base in evaluation mode, with trainable rows."""
    resized = load(graft.resized)
    add_adapter(resized, "tokens", graft.new_ids, lora_params())
    return resized.eval()


def parts(model: "SentenceTransformer") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Heads, relations, tails."""
    return pooled(model, HEADS), pooled(model, RELATIONS), pooled(model, TAILS)


def test_embeddings_are_those_before_normalize_and_the_layer_is_put_back(model: "SentenceTransformer") -> None:
    found = embed_pooled(model, [model.preprocess(TEXTS)])[0]
    torch.testing.assert_close(found, pooled(model, TEXTS))
    np.testing.assert_allclose(encode_pooled(model, TEXTS, 2), found.detach().numpy(), atol=1e-6)
    assert not np.allclose(np.linalg.norm(encode_pooled(model, TEXTS, 2), axis=1), 1)
    np.testing.assert_allclose(np.linalg.norm(model.encode(TEXTS), axis=1), 1, atol=1e-6)
    assert encode_pooled(model, [], 2).shape == (0, 32)


def test_the_layer_is_put_back_after_an_error(model: "SentenceTransformer") -> None:
    with pytest.raises(RuntimeError, match="stop"), before_normalize(model):
        raise RuntimeError("stop")
    np.testing.assert_allclose(np.linalg.norm(model.encode(TEXTS), axis=1), 1, atol=1e-6)


def test_a_model_without_normalize_is_taken_as_it_is(graft: Graft) -> None:
    from sentence_transformers import SentenceTransformer

    whole = load(graft.resized)
    bare = SentenceTransformer(modules=list(whole.children())[:2], device="cpu").eval()
    assert trailing_normalize(bare) == []
    torch.testing.assert_close(embed_pooled(bare, [bare.preprocess(TEXTS)])[0], pooled(whole.eval(), TEXTS))
    np.testing.assert_allclose(encode_pooled(bare, TEXTS, 2), encode_pooled(whole, TEXTS, 2), atol=1e-6)


def test_a_wrapper_is_seen_through(model: "SentenceTransformer") -> None:
    wrapped = torch.nn.DataParallel(model)
    assert unwrapped(wrapped) is model
    assert trailing_normalize(wrapped) == trailing_normalize(model) != []


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("squared", [False, True])
def test_the_translation_loss_is_the_mean_distance(model: "SentenceTransformer", p: int, squared: bool) -> None:
    heads, relations, tails = parts(model)
    distances = (heads + relations - tails).abs().pow(p).sum(dim=1).pow(1 / p)
    loss = TranslationLoss(model, p=p, squared=squared)(columns(model), None)
    torch.testing.assert_close(loss, (distances**2 if squared else distances).mean())


def test_the_margin_counts_only_corrupted_triples_that_are_not_too_far(model: "SentenceTransformer") -> None:
    """Two rows with different tails: the only corrupted tail of each is the other's."""
    heads, relations, tails = (part[1:3] for part in parts(model))
    right = (heads + relations - tails).norm(dim=1)
    wrong = (heads + relations - tails.flip(0)).norm(dim=1)
    for margin in (0.01, 1.0):
        loss = TranslationLoss(model, margin=margin, negatives=3)(columns(model, slice(1, 3)), None)
        torch.testing.assert_close(loss, (margin + right - wrong).clamp(min=0).mean())


def test_a_corrupted_tail_that_makes_a_triple_of_the_batch_is_left_out(model: "SentenceTransformer") -> None:
    """Both tails are `animal`, in two casings that the tokenizer reads alike."""
    batch = [model.preprocess(texts) for texts in (["dog", "cat"], ["<|IsA|>"] * 2, ["animal", "Animal"])]
    assert TranslationLoss(model, margin=5.0, negatives=2)(batch, None) == 0
    assert TranslationLoss(model, margin=5.0, negatives=2)(columns(model), None) > 0


def test_the_draw_depends_on_the_seed_and_the_batch_alone(model: "SentenceTransformer") -> None:
    def value(seed: int) -> float:
        return float(TranslationLoss(model, margin=1.0, negatives=2, seed=seed)(columns(model), None).detach())

    first = value(0)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    loss = TranslationLoss(model, margin=1.0, negatives=2)
    loss(columns(model, slice(0, 3)), None)
    assert float(loss(columns(model), None).detach()) == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len({value(seed) for seed in range(6)}) > 1


@pytest.mark.parametrize("name", ["euclidean", "manhattan", "cosine", "dot"])
def test_similarities_are_those_of_the_library(name: Any) -> None:
    from sentence_transformers.util.similarity import SimilarityFunction

    generator = torch.Generator().manual_seed(0)
    queries, candidates = torch.randn(40, 8, generator=generator), torch.randn(30, 8, generator=generator)
    expected = SimilarityFunction.to_similarity_fn(name)(queries, candidates)
    torch.testing.assert_close(similarities(queries, candidates, name), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["euclidean", "cosine"])
def test_the_ranking_loss_by_hand(model: "SentenceTransformer", name: Any) -> None:
    heads, relations, tails = parts(model)
    known = {"head": ["blood", "Blood"], "relation": ["->", "<|IsA|>"], "tail": ["FISH", "house"]}
    batch = set(zip(HEADS, RELATIONS, TAILS, strict=True))
    true = batch | {("blood", "->", "fish")}
    losses = []
    for direction in ("tail", "head"):
        rows = []
        for i, (head, relation, tail) in enumerate(zip(HEADS, RELATIONS, TAILS, strict=True)):
            query = heads[i] + relations[i] if direction == "tail" else tails[i] - relations[i]
            kept = [
                j
                for j in range(5)
                if j == i
                or ((head, relation, TAILS[j]) if direction == "tail" else (HEADS[j], relation, tail)) not in true
            ]
            pool = (tails if direction == "tail" else heads)[kept]
            scores = 3 * similarities(query[None], pool, name)
            rows.append(torch.nn.functional.cross_entropy(scores, torch.tensor([kept.index(i)])))
        losses.append(torch.stack(rows).mean())
    for given_known in (known, hash_triples(model, known)):
        loss = TranslationRankingLoss(model, similarity=name, scale=3.0, known=given_known)
        torch.testing.assert_close(loss(columns(model), None), torch.stack(losses).mean())
    one = TranslationRankingLoss(model, similarity=name, scale=3.0, known=known, directions=["head"])
    torch.testing.assert_close(one(columns(model), None), losses[1])
    unmasked = TranslationRankingLoss(model, similarity=name, scale=3.0)
    assert float(unmasked(columns(model), None)) > float(torch.stack(losses).mean())


def test_a_batch_whose_candidates_are_all_true_has_no_loss(model: "SentenceTransformer") -> None:
    batch = columns(model, slice(0, 2))
    known = {"head": ["a dog", "the cat"], "relation": ["<|IsA|>"] * 2, "tail": ["animal"] * 2}
    assert TranslationRankingLoss(model, known=known)(batch, None) == 0


def test_drawn_negatives_are_added_and_known_ones_among_them_masked(model: "SentenceTransformer") -> None:
    batch = columns(model, slice(1, 2))
    assert TranslationRankingLoss(model)(batch, None) == 0
    drawn = TranslationRankingLoss(model, candidates=["stone", "sugar"], negatives=2)
    value = float(drawn(batch, None).detach())
    assert value > 0
    assert float(drawn(batch, None).detach()) == value
    truth = {"head": ["the cat"] * 2, "relation": ["<|IsA|>"] * 2, "tail": ["stone", "sugar"]}
    options: dict[str, Any] = {"candidates": ["stone", "sugar"], "negatives": 2, "directions": ["tail"]}
    assert TranslationRankingLoss(model, known=truth, **options)(batch, None) == 0
    assert TranslationRankingLoss(model, **options)(batch, None) > 0


def test_a_prompt_of_the_trainer_is_part_of_the_known_text(model: "SentenceTransformer") -> None:
    prompts = {"tail": "passage "}
    batch = columns(model, slice(3, 5))
    batch[2] = model.preprocess(TAILS[3:5], prompt="passage ")
    known = {"head": ["blood", "dog"], "relation": ["->", "->"], "tail": ["fish", "water"]}
    options: dict[str, Any] = {"known": known, "directions": ["tail"]}
    assert TranslationRankingLoss(model, prompts=prompts, **options)(batch, None) == 0
    assert TranslationRankingLoss(model, **options)(batch, None) > 0


def test_constant_texts_give_the_same_loss_and_gradients_and_keep_unit_vectors_apart(graft: Graft) -> None:
    found = []
    for constant in (False, True):
        model = load(graft.resized).eval()
        with token_rows(model, graft.new_ids) as rows:
            loss = TranslationRankingLoss(model)
            if constant:
                with constant_texts(model, graft.new_ids):
                    normal = model(model.preprocess(HEADS))["sentence_embedding"]
                    loss(columns(model), None)
                    value = loss(columns(model), None)
                    again = model(model.preprocess(HEADS))["sentence_embedding"]
                torch.testing.assert_close(normal, again)
                torch.testing.assert_close(normal.norm(dim=1), torch.ones(len(HEADS)))
            else:
                value = loss(columns(model), None)
            value.backward()
            found.append((value.detach(), rows.rows.grad))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def test_squared_distance_over_free_relations_has_the_closed_form_as_its_best_answer() -> None:
    generator = torch.Generator().manual_seed(0)
    heads, tails = torch.randn(60, 6, generator=generator), torch.randn(60, 6, generator=generator)
    names = [f"r{place % 3}" for place in range(60)]
    means = closed_form(heads.numpy(), tails.numpy(), names)
    assert list(means) == ["r0", "r1", "r2"]
    vectors = torch.tensor(np.stack([means[name] for name in names]), requires_grad=True)
    (heads + vectors - tails).square().sum().backward()
    assert vectors.grad is not None
    for place in range(3):
        torch.testing.assert_close(vectors.grad[place::3].sum(dim=0), torch.zeros(6), atol=1e-4, rtol=0)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20), st.integers(0, 9))
def test_the_closed_form_recovers_planted_vectors(relations: list[str], seed: int) -> None:
    generator = np.random.default_rng(seed)
    planted = {name: generator.normal(size=4).astype(np.float32) for name in "abc"}
    heads = generator.normal(size=(len(relations), 4)).astype(np.float32)
    found = closed_form(heads, heads + np.stack([planted[name] for name in relations]), relations)
    assert found.keys() == set(relations)
    for name, vector in found.items():
        np.testing.assert_allclose(vector, planted[name], atol=1e-5)


def test_the_closed_form_of_uneven_arrays_is_refused() -> None:
    with pytest.raises(VocabgraftError, match="got 2 heads, 2 tails and 1 relations"):
        closed_form(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), ["a"])


def test_without_negatives_only_rows_may_be_trained(graft: Graft) -> None:
    TranslationLoss(with_adapter(graft, "tokens"))
    with pytest.raises(VocabgraftError, match=r"lora_A.* and \d+ more train .*method: tokens.*margin"):
        TranslationLoss(with_adapter(graft, "lora_and_tokens"))
    with pytest.raises(VocabgraftError, match="train besides the rows"):
        TranslationLoss(load(graft.resized))
    TranslationLoss(with_adapter(graft, "lora_and_tokens"), margin=1.0, negatives=1)
    model = load(graft.resized)
    with token_rows(model, graft.new_ids):
        TranslationLoss(model)


def with_adapter(graft: Graft, method: Any) -> "SentenceTransformer":
    """The resized base with a fresh adapter."""
    model = load(graft.resized)
    add_adapter(model, method, graft.new_ids, lora_params())
    return model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 3}, "p is 3; allowed: 1, 2"),
        ({"margin": 1.0}, "margin is 1.0 with 0 negatives"),
        ({"negatives": 2}, "margin is None with 2 negatives"),
        ({"margin": -1.0, "negatives": 2}, "margin is -1.0 with 2"),
    ],
)
def test_a_translation_loss_that_makes_no_sense_is_refused(
    model: "SentenceTransformer", options: dict[str, Any], message: str
) -> None:
    with pytest.raises(VocabgraftError, match=message):
        TranslationLoss(model, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "l2"}, "similarity is 'l2'; allowed: euclidean, manhattan, cosine, dot"),
        ({"directions": ["tails"]}, r"directions is \['tails'\]; allowed: a list of tail, head"),
        ({"directions": "tail"}, "directions is 'tail'; allowed: a list"),
        ({"negatives": 3, "candidates": ["a"]}, "negatives is 3, but there are 1 candidates"),
        ({"scale": 0.0}, "scale is 0.0; allowed: a number above 0"),
        ({"known": np.zeros(3)}, "known triples are an array of float64"),
    ],
)
def test_a_ranking_loss_that_makes_no_sense_is_refused(
    model: "SentenceTransformer", options: dict[str, Any], message: str
) -> None:
    with pytest.raises(VocabgraftError, match=message):
        TranslationRankingLoss(model, **options)


def test_a_batch_of_pairs_is_refused(model: "SentenceTransformer") -> None:
    for loss in (TranslationLoss(model), TranslationRankingLoss(model)):
        with pytest.raises(VocabgraftError, match="has 2 columns of texts; needed: head, relation and tail"):
            loss(columns(model)[:2], None)


def test_a_router_is_refused(graft: Graft) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Router

    whole = list(load(graft.resized).children())
    router = Router.for_query_document([Dense(32, 32)], [Dense(32, 32)])
    model = SentenceTransformer(modules=[*whole[:2], router, Normalize()], device="cpu")
    with pytest.raises(VocabgraftError, match="the model has a Router"):
        TranslationRankingLoss(model)


def test_what_the_losses_were_made_with_is_reported(model: "SentenceTransformer") -> None:
    told = TranslationLoss(model, margin=1.0, negatives=2).get_config_dict()
    assert told == {"p": 2, "squared": False, "margin": 1.0, "negatives": 2, "seed": 0}
    told = TranslationRankingLoss(model, candidates=["a"], negatives=1).get_config_dict()
    assert told["known"] == 0 and told["candidates"] == 1 and told["scale"] > 0


@pytest.mark.parametrize("kind", [TranslationLoss, TranslationRankingLoss])
def test_the_trainer_trains_relation_rows_with_it(graft: Graft, tmp_path: Path, kind: Any) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    model = with_adapter(graft, "tokens")
    dataset = Dataset.from_dict({"head": HEADS * 8, "relation": RELATIONS * 8, "tail": TAILS * 8})
    loss = kind(model)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=5,
        num_train_epochs=2,
        learning_rate=0.05,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    model.eval()
    before = float(loss(columns(model), None).detach())
    with fast_peft_rows(model), constant_texts(model, graft.new_ids):
        SentenceTransformerTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss).train()
    model.eval()
    assert float(loss(columns(model), None).detach()) < before
