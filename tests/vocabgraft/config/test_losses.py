"""The table of losses: each trains on each format that it fits, and what does not fit is refused with what does."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.vocabgraft.conftest import Graft, WriteDataset, load, rows_of, train_params
from vocabgraft.config.datasets import COLUMNS, DatasetParams, LossParams
from vocabgraft.config.losses import (
    DEFAULT_LOSS,
    FILLED_IN,
    FORMATS,
    LIBRARY,
    LOSSES,
    WRAPPER_ORDERS,
    WRAPPERS,
    Format,
    check_loss,
    check_method,
    losses_for,
    works_with_constants,
)
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.errors import VocabgraftError
from vocabgraft.training.adapters import add_adapter, train_only
from vocabgraft.training.columns import load_rows
from vocabgraft.training.fit import train_adapter
from vocabgraft.training.losses import Entities, WeightedLoss, build_loss, load_guides, own_parameters

HEADS = ("big", "old", "new", "red", "own", "sad", "dry", "wet")
TEXTS = [f"{head} {word}" for head in HEADS for word in ("nephrolith", "thrombopenia")]
OTHERS = [f"{head} {word}" for head in HEADS for word in ("stone", "blood")]
WIDTH = 32
# Given where a loss needs one.
NEEDED: dict[str, dict[str, Any]] = {
    "GISTEmbedLoss": {"guide": "base"},
    "CachedGISTEmbedLoss": {"guide": "base"},
    "DenoisingAutoEncoderLoss": {"tie_encoder_decoder": False},
    # Vectors of this base are near each other; the default margin would leave no pair to learn from.
    "OnlineContrastiveLoss": {"margin": 2.0},
}
OF_WRAPPER: dict[str, dict[str, Any]] = {
    "MatryoshkaLoss": {"matryoshka_dims": [32, 8]},
    "Matryoshka2dLoss": {"matryoshka_dims": [32, 8]},
    "AdaptiveLayerLoss": {},
}
FIT = [(name, dataset_format) for name, entry in LOSSES.items() for dataset_format in entry.formats]
WRAPPED = [(name, wrapper) for name, entry in LOSSES.items() for wrapper in entry.wrappers]


def rows(dataset_format: Format) -> list[tuple[Any, ...]]:
    """Sixteen rows of a format, with new words."""
    made: dict[Format, Any] = {
        "triples": zip(OTHERS, ["IsA"] * 16, TEXTS, strict=True),
        "pairs": zip(TEXTS, OTHERS, strict=True),
        "triplets": zip(TEXTS, OTHERS, OTHERS[1:] + OTHERS[:1], strict=True),
        "scored_pairs": zip(TEXTS, OTHERS, [number / 16 for number in range(16)], strict=True),
        "labelled_pairs": zip(TEXTS, OTHERS, [0, 1] * 8, strict=True),
        "labelled_texts": zip(TEXTS, [0, 1] * 8, strict=True),
        "texts": zip(TEXTS, strict=True),
        "teacher_embeddings": zip(TEXTS, torch.eye(WIDTH)[:16].tolist(), strict=True),
        "margins": zip(TEXTS, OTHERS, OTHERS[1:] + OTHERS[:1], [number / 16 for number in range(16)], strict=True),
    }
    return list(made[dataset_format])


def dataset_of(write_dataset: WriteDataset, dataset_format: Format, name: str = "own") -> AcceptedDataset:
    """A dataset of a format."""
    return write_dataset(name, dataset_format, COLUMNS[dataset_format], train=rows(dataset_format))


def settings(name: str, dataset_format: Format, loss: dict[str, Any] | str | None, **more: Any) -> DatasetParams:
    """A dataset as params.yaml has it."""
    given = {"name": name, "format": dataset_format, "files": {"train": "x.csv"}, "loss": loss} | more
    return DatasetParams.model_validate(given)


def step(model: Any, loss: torch.nn.Module, data: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Two steps of gradient descent on the rows over one batch; the losses before each."""
    from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

    batch = SentenceTransformerDataCollator(preprocess_fn=model.preprocess)([data[place] for place in range(len(data))])
    names = [name for name in data.column_names if name != "label"]
    features = [
        {key.removeprefix(f"{name}_"): value for key, value in batch.items() if key.startswith(f"{name}_")}
        for name in names
    ]
    optimizer = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], lr=0.01)
    seen = []
    for _ in range(2):
        found = loss([dict(entry) for entry in features], batch.get("label"))
        total = torch.stack(list(found.values())).sum() if isinstance(found, dict) else found
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        seen.append(total.detach())
    return seen[0], seen[1]


@pytest.fixture(scope="module")
def resized(graft: Graft) -> Any:
    """The resized base with an adapter of rows; its rows are put back by each test."""
    model = load(graft.resized)
    add_adapter(model, "tokens", graft.new_ids, train_params().lora)
    train_only(model, "all")
    return model


@pytest.fixture
def model(resized: Any) -> Any:
    """The shared model with its first rows."""
    (trained,) = [parameter for parameter in resized.parameters() if parameter.requires_grad]
    before = trained.detach().clone()
    yield resized.train()
    resized.__dict__.pop("forward", None)
    with torch.no_grad():
        trained.copy_(before)


def trains(model: Any, dataset: AcceptedDataset, loss: LossParams, folder: Path) -> None:
    """Two steps change the rows and the loss."""
    entry = LOSSES[loss.name]
    data = load_rows(dataset, "train", entry, folder, scores_each=loss.name == "DistillKLDivLoss")
    built = build_loss(model, dataset.name, loss, [data], guides=load_guides([loss], model))
    (trained,) = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = trained.detach().clone()
    first, second = step(model, built, data)
    assert torch.isfinite(first)
    assert torch.isfinite(second)
    assert first != second
    assert not torch.equal(trained, before)


@pytest.mark.parametrize(("name", "dataset_format"), FIT)
def test_every_loss_trains_on_every_format_that_it_fits(
    model: Any, write_dataset: WriteDataset, tmp_path: Path, name: str, dataset_format: Format
) -> None:
    loss = LossParams(name=name, arguments=NEEDED.get(name, {}))
    trains(model, dataset_of(write_dataset, dataset_format), loss, tmp_path / "cache")


@pytest.mark.filterwarnings("ignore:.*matryoshka_dims")
@pytest.mark.parametrize(("name", "wrapper"), WRAPPED)
def test_every_wrapper_works_around_every_loss_that_it_fits(
    model: Any, write_dataset: WriteDataset, tmp_path: Path, name: str, wrapper: str
) -> None:
    loss = LossParams(
        name=name,
        arguments=NEEDED.get(name, {}),
        wrappers=[{"name": wrapper, "arguments": OF_WRAPPER[wrapper]}],  # type: ignore[list-item]
    )
    trains(model, dataset_of(write_dataset, LOSSES[name].formats[-1]), loss, tmp_path / "cache")


def test_a_decoder_of_the_base_reads_new_tokens(
    model: Any, write_dataset: WriteDataset, tmp_path: Path, tiny_base: Path
) -> None:
    arguments = {"tie_encoder_decoder": False, "decoder_name_or_path": str(tiny_base)}
    loss = LossParams(name="DenoisingAutoEncoderLoss", arguments=arguments)
    trains(model, dataset_of(write_dataset, "texts"), loss, tmp_path / "cache")


def test_simcse_embeds_a_text_twice_and_dropout_tells_the_two_apart(
    model: Any, write_dataset: WriteDataset, tmp_path: Path
) -> None:
    loss = LossParams(name="SimCSELoss", arguments={"scale": 30.0})
    data = load_rows(dataset_of(write_dataset, "texts"), "train", LOSSES[loss.name], tmp_path / "cache")
    built = build_loss(model, "own", loss, [data])
    features = model.preprocess(data["text"])
    seen = []
    hook = model.register_forward_hook(lambda *call: seen.append(call[2]["sentence_embedding"].detach()))
    found = built([features])
    hook.remove()
    assert len(seen) == 2
    assert not torch.equal(*seen)
    scores = 30.0 * torch.nn.functional.cosine_similarity(seen[0][:, None], seen[1][None], dim=-1)
    torch.testing.assert_close(found.detach(), torch.nn.functional.cross_entropy(scores, torch.arange(len(scores))))


def test_simcse_is_refused_for_a_base_without_dropout(graft: Graft) -> None:
    plain = load(graft.resized)
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with pytest.raises(VocabgraftError, match=r"dataset own: SimCSELoss learns from dropout, .* hidden_dropout_prob"):
        build_loss(plain, "own", LossParams(name="SimCSELoss"), [])


def test_the_table_has_every_dense_loss_of_the_library() -> None:
    from sentence_transformers.sentence_transformer import losses

    classes = {name for name in losses.__all__ if name.endswith(("Loss", "LossInBatchNegatives"))}
    own = {name for name, entry in LOSSES.items() if entry.module != LIBRARY}
    assert {*LOSSES, *WRAPPERS} - own == classes
    assert set(DEFAULT_LOSS) == set(FORMATS)
    assert all(DEFAULT_LOSS[name] in losses_for(name) for name in FORMATS)


@pytest.mark.parametrize("name", (*LOSSES, *WRAPPERS))
def test_the_arguments_that_a_loss_needs_are_those_without_a_default(name: str) -> None:
    module = LOSSES[name].module if name in LOSSES else LIBRARY
    # Of `__init__`: a class that is marked as deprecated has the signature of the marker.
    taken = inspect.signature(getattr(importlib.import_module(module), name).__init__).parameters
    given = {key for key, parameter in taken.items() if parameter.default is inspect.Parameter.empty}
    guided = name in LOSSES and LOSSES[name].guided
    needed = {"guide"} if guided else set(WRAPPERS[name].required if name in WRAPPERS else ())
    assert needed == given - FILLED_IN - {"self", "num_labels"}


@pytest.mark.parametrize("dataset_format", FORMATS)
def test_a_loss_that_does_not_fit_is_refused_with_those_that_do(dataset_format: Format) -> None:
    for name, entry in LOSSES.items():
        if dataset_format in entry.formats:
            check_loss(dataset_format, name, NEEDED.get(name, {}))
            continue
        with pytest.raises(ValueError, match=f"{name} does not fit the format {dataset_format}") as caught:
            check_loss(dataset_format, name, {})
        assert str(caught.value).endswith(", ".join(losses_for(dataset_format)))


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ("TripletLos", "there is no loss TripletLos (do you mean TripletLoss?)"),
        ({"name": "TripletLoss", "arguments": {"margin": 1}}, "no argument margin (do you mean triplet_margin?)"),
        ({"name": "GISTEmbedLoss"}, "needs the argument guide"),
        ({"name": "TripletLoss", "wrappers": ["Matryoshka"]}, "there is no wrapper Matryoshka (do you mean Matryo"),
        ({"name": "TripletLoss", "wrappers": ["MatryoshkaLoss"]}, "needs the argument matryoshka_dims"),
        ({"name": "CachedGISTEmbedLoss", "arguments": {"guide": "base"}, "wrappers": ["AdaptiveLayerLoss"]}, "not fit"),
        (
            {
                "name": "TripletLoss",
                "wrappers": [
                    "AdaptiveLayerLoss",
                    {"name": "MatryoshkaLoss", "arguments": {"matryoshka_dims": [8]}},
                ],
            },
            "do not work in this order",
        ),
    ],
)
def test_what_a_loss_does_not_have_is_refused_with_what_it_has(loss: Any, told: str) -> None:
    with pytest.raises(ValueError, match="Loss") as caught:
        settings("own", "triplets", loss)
    assert told in str(caught.value)


def test_wrappers_that_are_listed_may_be_given_in_order() -> None:
    around = [{"name": name, "arguments": OF_WRAPPER[name]} for name in WRAPPER_ORDERS[-1]]
    assert len(settings("own", "pairs", {"name": DEFAULT_LOSS["pairs"], "wrappers": around}).chosen_loss.wrappers) == 2


def test_a_tied_decoder_is_refused_where_the_encoder_is_frozen() -> None:
    for method in ("tokens", "lora", "lora_and_tokens", "peft", "peft_and_tokens"):
        with pytest.raises(
            ValueError, match=f"DenoisingAutoEncoderLoss .* method {method} .*tie_encoder_decoder: false"
        ):
            check_method("DenoisingAutoEncoderLoss", {}, method)
    check_method("DenoisingAutoEncoderLoss", {"tie_encoder_decoder": False}, "tokens")
    check_method("DenoisingAutoEncoderLoss", {}, "full")


def test_losses_that_look_inside_the_model_keep_the_table_of_constants_off() -> None:
    assert works_with_constants("MultipleNegativesRankingLoss", ["MatryoshkaLoss"])
    assert not works_with_constants("MultipleNegativesRankingLoss", ["AdaptiveLayerLoss"])
    assert not works_with_constants("TranslationLoss")


@pytest.mark.parametrize(
    ("dataset_format", "name", "arguments", "told"),
    [
        ("pairs", "MultipleNegativesRankingLoss", {"similarity_fct": "cosine"}, "'cosine'; allowed: cos_sim"),
        ("triplets", "TripletLoss", {"distance_metric": "l3"}, "'l3'; allowed: COSINE, EUCLIDEAN, MANHATTAN"),
        ("labelled_texts", "BatchAllTripletLoss", {"distance_metric": "l3"}, "allowed: cosine_distance"),
        ("scored_pairs", "CosineSimilarityLoss", {"loss_fct": "nothing"}, "allowed: a class of torch.nn"),
        ("labelled_pairs", "SoftmaxLoss", {"num_labels": 1}, "a label is 1; allowed: 0 to 0"),
        ("margins", "DistillKLDivLoss", {"temperature": -1.0}, "temperature must be a positive finite number"),
        ("teacher_embeddings", "MSELoss", {"projection_dim": 9}, "have width 32 and the model's 9; give arguments"),
        ("pairs", "GISTEmbedLoss", {"guide": "nowhere"}, "the guide 'nowhere' is not a folder; allowed: base"),
    ],
)
def test_a_value_that_a_loss_refuses_is_reported(
    model: Any,
    write_dataset: WriteDataset,
    tmp_path: Path,
    dataset_format: Format,
    name: str,
    arguments: dict[str, Any],
    told: str,
) -> None:
    with pytest.raises(VocabgraftError) as caught:
        trains(
            model, dataset_of(write_dataset, dataset_format), LossParams(name=name, arguments=arguments), tmp_path / "c"
        )
    assert told in str(caught.value)


def test_a_weight_scales_the_loss_or_each_of_its_terms() -> None:
    class Given(torch.nn.Module):
        def forward(self, features: Any, labels: Any) -> Any:
            return features

    weighted = WeightedLoss(torch.nn.Linear(1, 1), Given(), 0.25)
    assert weighted(torch.tensor(4.0)) == 1
    assert weighted({"mean": torch.tensor(4.0), "moment": torch.tensor(8.0)}) == {"mean": 1, "moment": 2}


def test_a_dataset_of_some_weight_gets_a_loss_of_that_weight(
    model: Any, write_dataset: WriteDataset, tmp_path: Path
) -> None:
    dataset, loss = dataset_of(write_dataset, "pairs"), LossParams(name="MultipleNegativesRankingLoss")
    data = load_rows(dataset, "train", LOSSES[loss.name], tmp_path / "cache")
    built = build_loss(model, dataset.name, loss, [data], weight=0.25)
    assert isinstance(built, WeightedLoss)
    assert built.weight == 0.25
    first, second = step(model, built, data)
    assert first != second


@pytest.mark.parametrize("name", ("MultipleNegativesRankingLoss", "MultipleNegativesSymmetricRankingLoss"))
def test_several_processes_share_their_candidates(
    name: str, model: Any, write_dataset: WriteDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, loss = dataset_of(write_dataset, "pairs"), LossParams(name=name)
    data = load_rows(dataset, "train", LOSSES[name], tmp_path / "cache")
    assert build_loss(model, dataset.name, loss, [data]).gather_across_devices is False
    monkeypatch.setattr("vocabgraft.training.losses.world_size", lambda: 2)
    assert build_loss(model, dataset.name, loss, [data]).gather_across_devices is True


def test_a_classifier_of_a_loss_is_trained_beside_the_rows(
    model: Any, write_dataset: WriteDataset, tmp_path: Path
) -> None:
    dataset = dataset_of(write_dataset, "labelled_pairs")
    loss = LossParams(name="SoftmaxLoss")
    data = load_rows(dataset, "train", LOSSES[loss.name], tmp_path / "cache")
    built = build_loss(model, dataset.name, loss, [data])
    assert set(own_parameters({"own": built}, model)) == {"own.classifier.weight", "own.classifier.bias"}
    contrastive = build_loss(model, dataset.name, LossParams(name="ContrastiveLoss"), [data])
    assert own_parameters({"own": contrastive}, model) == {}


def test_datasets_of_all_formats_are_trained_at_once_each_with_its_loss(
    graft: Graft, write_dataset: WriteDataset
) -> None:
    datasets, chosen = [], []
    for dataset_format in FORMATS:
        name = f"of-{dataset_format}"
        given = rows(dataset_format)
        datasets.append(write_dataset(name, dataset_format, COLUMNS[dataset_format], train=given, validation=given[:4]))
        chosen.append(settings(name, dataset_format, DEFAULT_LOSS[dataset_format], weight=0.5))
    model = load(graft.resized)
    params = train_params(arguments={"multi_dataset_batch_sampler": "round_robin"})
    result = train_adapter(model, datasets, graft.new_ids, params, 3, chosen)
    evaluated = {key for entry in result.curve for key in entry if key.startswith("eval_")}
    assert {f"eval_of-{name}_loss" for name in FORMATS} <= evaluated
    assert result.examples == 16 * len(FORMATS)
    assert not torch.equal(
        next(p for n, p in model.named_parameters() if "trainable_tokens_delta" in n),
        rows_of(load(graft.resized))[graft.new_ids],
    )


def test_entities_are_each_text_of_heads_and_tails_once_in_order(write_dataset: WriteDataset, tmp_path: Path) -> None:
    given = [("dog", "IsA", "animal"), ("Éclair", "IsA", "food"), ("animal", "IsA", "dog"), ("a", "IsA", "zoë")]
    dataset = write_dataset("own", "triples", ("head", "relation", "tail"), train=given)
    data = load_rows(dataset, "train", LOSSES["TranslationRankingLoss"], tmp_path / "cache")
    found = Entities(data)
    assert list(found) == sorted({"dog", "animal", "Éclair", "food", "a", "zoë"})
    assert (len(found), found[1]) == (6, "animal")


def test_noise_takes_words_out_and_leaves_one(write_dataset: WriteDataset, tmp_path: Path) -> None:
    given = [(f"one two three four five {number}",) for number in range(30)] + [("alone",)]
    dataset = write_dataset("own", "texts", ("text",), train=given)
    entry = LOSSES["DenoisingAutoEncoderLoss"]
    made = load_rows(dataset, "train", entry, tmp_path / "cache", seed=1)
    assert made.column_names == ["noisy", "text"]
    assert made["noisy"][-1] == "alone"
    lengths = [len(text.split()) for text in made["noisy"]]
    assert min(lengths) >= 1
    assert 1.5 < sum(lengths) / len(lengths) < 3.5
    assert list(load_rows(dataset, "train", entry, tmp_path / "two", seed=1)["noisy"]) == list(made["noisy"])


def test_contrast_pairs_one_text_in_eight_with_itself(write_dataset: WriteDataset, tmp_path: Path) -> None:
    dataset = write_dataset("own", "texts", ("text",), train=[(f"text {number}",) for number in range(40)])
    made = load_rows(dataset, "train", LOSSES["ContrastiveTensionLoss"], tmp_path / "cache", seed=1)
    same = [left == right for left, right in zip(made["text"], made["other"], strict=True)]
    assert [float(one) for one in same] == list(made["label"])
    assert sum(same) == 5


def test_a_loss_of_one_negative_sees_a_row_for_each(write_dataset: WriteDataset, tmp_path: Path) -> None:
    columns = (*COLUMNS["triplets"], "negative_2")
    dataset = write_dataset("own", "triplets", columns, train=[("a", "b", "c", "d"), ("e", "f", "g", "h")])
    one = load_rows(dataset, "train", LOSSES["TripletLoss"], tmp_path / "one")
    assert list(one["negative"]) == ["c", "d", "g", "h"]
    every = load_rows(dataset, "train", LOSSES["MultipleNegativesRankingLoss"], tmp_path / "every")
    assert every.column_names == list(columns)


def test_a_template_says_what_a_triple_asks(write_dataset: WriteDataset, tmp_path: Path) -> None:
    plain = dataset_of(write_dataset, "triples")
    dataset = AcceptedDataset(plain.name, plain.format, plain.folder, "what {relation} {head}")
    made = load_rows(dataset, "train", LOSSES["MegaBatchMarginLoss"], tmp_path / "cache")
    assert made[0] == {"anchor": f"what <|IsA|> {OTHERS[0]}", "positive": TEXTS[0]}
    with pytest.raises(ValueError, match=r"lacks \{head\} or \{relation\}"):
        settings("own", "triples", None, template="{head} is")
    with pytest.raises(ValueError, match="is not a template of"):
        settings("own", "triples", None, template="{tail} {head}")
    with pytest.raises(ValueError, match="template is for triples"):
        settings("own", "pairs", None, template="{relation} {head}")
