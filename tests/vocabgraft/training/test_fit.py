"""Training on the tiny base: what moves, that it is repeatable, and that a lost loss is told."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.vocabgraft.conftest import Graft, WriteDataset, load, rows_of, train_params
from vocabgraft.config.datasets import DatasetParams
from vocabgraft.config.losses import LOSSES
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.errors import VocabgraftError
from vocabgraft.token_embeddings import sinks
from vocabgraft.training import fit
from vocabgraft.training.adapters import adapter_parameters
from vocabgraft.training.columns import ids_without_text, load_rows
from vocabgraft.training.fit import TrainingResult, train_adapter
from vocabgraft.training.samplers import RandomBatches
from vocabgraft.training.trainer import AdapterTrainer
from vocabgraft.triples.losses import TranslationLoss

HEADS = ("big", "old", "new", "red", "own", "sad", "dry", "wet")


@pytest.fixture
def datasets(write_dataset: WriteDataset) -> list[AcceptedDataset]:
    """Sixteen pairs and eight triples, with a validation split of the pairs."""
    pairs: list[tuple[str | None, ...]] = [
        (f"{head} {word}", f"{head} {meaning}", word)
        for head in HEADS
        for word, meaning in (("nephrolith", "stone"), ("thrombopenia", "low blood"))
    ]
    triples: list[tuple[str | None, ...]] = [(f"{head} dog", "IsA", f"{head} animal") for head in HEADS]
    return [
        write_dataset("terms", "pairs", ("anchor", "positive", "group"), train=pairs, validation=pairs[:4]),
        write_dataset("relations", "triples", ("head", "relation", "tail"), train=triples),
    ]


def train(graft: Graft, datasets: list[AcceptedDataset], seed: int = 3, **changes: Any) -> tuple[Any, TrainingResult]:
    """Train an adapter over the resized tiny base."""
    model = load(graft.resized)
    return model, train_adapter(model, datasets, graft.new_ids, train_params(**changes), seed)


def parts(model: Any) -> dict[str, torch.Tensor]:
    """The adapter's weights, copied."""
    return {name: parameter.detach().clone() for name, parameter in adapter_parameters(model).items()}


def test_rows_are_trained_and_nothing_else_moves(graft: Graft, datasets: list[AcceptedDataset]) -> None:
    model, result = train(graft, datasets)
    (rows,) = parts(model).values()
    start = rows_of(load(graft.resized))[graft.new_ids]
    moved = (rows != start).any(dim=1).tolist()
    # No text of these uses the symbol "->".
    assert dict(zip((token.text for token in graft.tokens), moved, strict=True)) == {
        "nephrolith": True,
        "Thrombopenia": True,
        "->": False,
        "<|IsA|>": True,
    }
    assert result.trainable_parameters == rows.numel()
    assert result.examples == 24
    assert not model.training
    frozen = load(graft.resized).state_dict()
    after = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())


def test_equal_seeds_give_equal_weights_and_curves_and_others_do_not(
    graft: Graft, datasets: list[AcceptedDataset]
) -> None:
    (first, one), (second, two), (third, _) = (
        train(graft, datasets, seed, method="lora_and_tokens") for seed in (3, 3, 4)
    )
    assert one == two
    left, right, other = parts(first), parts(second), parts(third)
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert any(not torch.equal(left[name], other[name]) for name in left)


def test_a_phase_moves_its_part_alone(graft: Graft, datasets: list[AcceptedDataset]) -> None:
    rows_first, _ = train(graft, datasets, method="lora_and_tokens", phases=[{"train": "rows"}])
    lora_only, _ = train(graft, datasets, method="lora_and_tokens", phases=[{"train": "adapter"}])
    start = rows_of(load(graft.resized))[graft.new_ids]
    for model, rows_moved in ((rows_first, True), (lora_only, False)):
        weights = parts(model)
        rows = next(tensor for name, tensor in weights.items() if "trainable_tokens_delta" in name)
        # LoRA's second matrix starts at zero.
        lora = [tensor for name, tensor in weights.items() if ".lora_B" in name]
        assert torch.equal(rows, start) != rows_moved
        assert any(tensor.any() for tensor in lora) != rows_moved


def test_everything_is_trained_at_one_rate_and_what_no_text_uses_stays(
    graft: Graft, datasets: list[AcceptedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = rates_of(monkeypatch)
    model, result = train(graft, datasets, method="full", learning_rate=1e-3, warmup_ratio=0.0)
    assert groups == {(1e-3, 0.0)}
    pooled = model[0].auto_model.pooler.parameters()
    assert result.trainable_parameters == sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in pooled)
    start, after = load(graft.resized).state_dict(), model.state_dict()
    assert list(start) == list(after)
    # Mean pooling reads no pooler, and these texts are shorter than the positions.
    same = {name.split(".model.")[-1] for name in start if torch.equal(start[name], after[name])}
    assert {name for name in same if "pooler" not in name} <= {"embeddings.token_type_embeddings.weight"}
    rows = (rows_of(load(graft.resized)) != rows_of(model)).any(dim=1)
    vocabulary = model.tokenizer.get_vocab()
    assert [bool(rows[vocabulary[word]]) for word in ("nephrolith", "stone", "<|IsA|>")] == [True, True, True]
    # No decay: it would pull those to zero that no batch mentions.
    assert [bool(rows[vocabulary[word]]) for word in ("->", "fish", "[MASK]")] == [False, False, False]


@pytest.mark.parametrize(
    ("method", "rates"),
    [
        ("tokens", {0.1}),
        ("lora", {1e-3}),
        ("peft", {1e-3}),
        ("lora_and_tokens", {0.1, 1e-3}),
        ("peft_and_tokens", {0.1, 1e-3}),
        ("full", {1e-3}),
    ],
)
def test_rows_have_a_rate_of_their_own_where_they_are_kept_apart(
    graft: Graft, datasets: list[AcceptedDataset], monkeypatch: pytest.MonkeyPatch, method: str, rates: set[float]
) -> None:
    groups = rates_of(monkeypatch)
    train(graft, datasets, method=method, learning_rate=1e-3, rows_learning_rate=0.1, warmup_ratio=0.0)
    assert groups == {(rate, 0.0) for rate in rates}


def test_a_rate_of_ones_own_is_given_to_a_part_of_any_method(
    graft: Graft, datasets: list[AcceptedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = rates_of(monkeypatch)
    mapping = {"learning_rate_mapping": {r"encoder\.layer\.1\.": 1e-5}}
    for method in ("full", "peft"):
        train(graft, datasets, method=method, learning_rate=1e-3, warmup_ratio=0.0, arguments=mapping)
        assert groups == {(1e-3, 0.0), (1e-5, 0.0)}
        groups.clear()


def rates_of(monkeypatch: pytest.MonkeyPatch) -> set[tuple[float, float]]:
    """The learning rates and weight decays of a training's first step, filled when it runs."""
    seen: set[tuple[float, float]] = set()
    own = AdapterTrainer.training_step

    def step(self: AdapterTrainer, *args: Any) -> Any:
        if self.state.global_step == 0:
            groups = [group for group in self.optimizer.param_groups if group["params"]]
            seen.update((group["lr"], group["weight_decay"]) for group in groups)
        return own(self, *args)

    monkeypatch.setattr(AdapterTrainer, "training_step", step)
    return seen


@pytest.mark.parametrize(
    ("method", "phases", "uses"),
    [
        ("tokens", [], [True]),
        ("lora", [], [False]),
        ("peft", [], [False]),
        ("full", [], [False]),
        ("peft_and_tokens", [{"train": "rows"}, {"train": "adapter"}, {"train": "all"}], [True, False, False]),
    ],
)
def test_texts_are_taken_for_constant_only_while_rows_alone_move(
    graft: Graft,
    datasets: list[AcceptedDataset],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    phases: list[dict[str, str]],
    uses: list[bool],
) -> None:
    own, phase, found = AdapterTrainer.train, list[bool](), list[bool]()
    made = fit.constant_texts

    def used(*args: Any) -> Any:
        phase.append(True)
        return made(*args)

    def trained(self: AdapterTrainer, *args: Any, **options: Any) -> Any:
        found.append(bool(phase))
        phase.clear()
        return own(self, *args, **options)

    monkeypatch.setattr(fit, "constant_texts", used)
    monkeypatch.setattr(AdapterTrainer, "train", trained)
    train(graft, datasets, method=method, phases=phases)
    assert found == uses


def test_a_model_that_was_trained_in_bfloat16_encodes_in_float32(graft: Graft, datasets: list[AcceptedDataset]) -> None:
    model, _ = train(graft, datasets, method="full", precision="bfloat16")
    again = load(graft.resized)
    again.load_state_dict(model.state_dict())
    text = ["a nephrolith in the kidney"]
    assert (model.encode(text) == again.encode(text)).all()


def test_a_decoder_that_is_tied_to_the_encoder_trains_it(graft: Graft, write_dataset: WriteDataset) -> None:
    texts = [(f"{head} nephrolith in the kidney",) for head in HEADS]
    dataset = write_dataset("own", "texts", ("text",), train=texts)
    loss = {"name": "DenoisingAutoEncoderLoss"}
    settings = [DatasetParams.model_validate({"name": "own", "format": "texts", "files": {"train": "x"}, "loss": loss})]
    model = load(graft.resized)
    train_adapter(model, [dataset], graft.new_ids, train_params(method="full", epochs=3), 3, settings)
    moved = (rows_of(load(graft.resized)) != rows_of(model)).any(dim=1)
    assert bool(moved[model.tokenizer.get_vocab()["kidney"]])


def test_the_curve_has_every_phase_and_no_timings(graft: Graft, datasets: list[AcceptedDataset]) -> None:
    phases = [{"train": "rows", "epochs": 1}, {"train": "all", "epochs": 2}]
    _, result = train(graft, datasets, method="lora_and_tokens", phases=phases)
    assert [entry["phase"] for entry in result.curve] == sorted(entry["phase"] for entry in result.curve)
    assert {entry["phase"] for entry in result.curve} == {1, 2}
    keys = {key for entry in result.curve for key in entry}
    assert {"loss", "step", "learning_rate"} <= keys
    assert not [key for key in keys if "runtime" in key or "per_second" in key or "flos" in key]
    assert max(entry["epoch"] for entry in result.curve if entry["phase"] == 2) == 2
    assert any("eval" in key for key in keys)


def test_more_training_lowers_the_loss(graft: Graft, datasets: list[AcceptedDataset]) -> None:
    _, result = train(graft, datasets, epochs=6, batch_size=12, rows_learning_rate=0.1)
    losses = [entry["loss"] for entry in result.curve if "loss" in entry]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_a_loss_that_is_no_number_is_reported_with_the_remedy(graft: Graft, datasets: list[AcceptedDataset]) -> None:
    model = load(graft.resized)
    with torch.no_grad():
        model[0].auto_model.get_input_embeddings().weight[graft.new_ids[0]] = float("nan")
    with pytest.raises(
        VocabgraftError, match=r"the loss is NaN or infinite at step \d+; lower the learning rates"
    ) as caught:
        train_adapter(model, datasets, graft.new_ids, train_params(), 3)
    assert "rows of the dataset terms: '" in str(caught.value)


def test_a_lost_loss_leaves_the_last_good_weights(
    graft: Graft, datasets: list[AcceptedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vocabgraft.training.losses import WeightedLoss

    seen: list[dict[str, torch.Tensor]] = []

    def lost_at_the_third(self: WeightedLoss, features: Any, labels: Any = None) -> Any:
        seen.append(parts(self.model))
        return self.loss(features, labels) * (float("nan") if len(seen) == 3 else 1.0)

    monkeypatch.setattr(WeightedLoss, "forward", lost_at_the_third)
    files = {"train": "x.csv"}
    settings = [
        DatasetParams.model_validate({"name": entry.name, "format": entry.format, "files": files, "weight": 0.5})
        for entry in datasets
    ]
    model = load(graft.resized)
    with pytest.raises(VocabgraftError, match=r"NaN or infinite at step 3; .* has the weights of the step before"):
        train_adapter(model, datasets, graft.new_ids, train_params(epochs=3), 3, settings)
    (rows,) = parts(model).values()
    assert torch.isfinite(rows).all()
    assert torch.equal(rows, next(iter(seen[2].values())))
    assert not torch.equal(rows, next(iter(seen[0].values())))


def test_prompts_of_the_model_are_trained_with(graft: Graft, datasets: list[AcceptedDataset]) -> None:
    model = load(graft.resized)
    model.prompts = {"query": "query ", "document": "passage "}
    train_adapter(model, datasets, graft.new_ids, train_params(), 3)
    without, _ = train(graft, datasets)
    left, right = parts(model), parts(without)
    assert any(not torch.equal(left[name], right[name]) for name in left)


def test_pairs_and_triples_are_read_as_anchor_and_positive(datasets: list[AcceptedDataset], tmp_path: Path) -> None:
    entry = LOSSES["MultipleNegativesRankingLoss"]
    terms, relations = (load_rows(dataset, "train", entry, tmp_path / "cache") for dataset in datasets)
    assert terms.column_names == relations.column_names == ["anchor", "positive"]
    assert relations[0] == {"anchor": "big dog <|IsA|>", "positive": "big animal"}
    assert list(zip(terms["anchor"], terms["positive"], strict=True)) == datasets[0].pairs("train")
    assert list(zip(relations["anchor"], relations["positive"], strict=True)) == datasets[1].pairs("train")


def test_triples_of_one_relation_come_in_whole_batches(
    graft: Graft, datasets: list[AcceptedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = {"name": "TranslationLoss"}
    given = {"name": "relations", "format": "triples", "files": {"train": "-"}, "loss": loss}
    sizes: list[int] = []
    own = TranslationLoss.forward

    def forward(self: TranslationLoss, columns: Any, labels: Any = None) -> torch.Tensor:
        sizes.append(len(columns[0]["input_ids"]))
        return own(self, columns, labels)

    monkeypatch.setattr(TranslationLoss, "forward", forward)
    params = train_params(batch_size=4, epochs=2)
    settings = [DatasetParams.model_validate(given)]
    train_adapter(load(graft.resized), datasets[1:], graft.new_ids, params, 3, settings)
    assert sizes == [4, 4] * 2


@pytest.mark.parametrize("drop_last", [False, True])
def test_random_batches_hold_every_row_once_in_an_order_of_seed_and_epoch(drop_last: bool) -> None:
    def drawn(seed: int, epoch: int) -> list[list[int]]:
        batches = RandomBatches(range(103), 10, drop_last, generator=torch.Generator(), seed=seed)
        batches.set_epoch(epoch)
        assert len(batches) == len(list(batches))
        return list(batches)

    found = drawn(3, 1)
    rows = [row for batch in found for row in batch]
    assert len(rows) == len(set(rows)) == (100 if drop_last else 103)
    assert set(rows) <= set(range(103))
    assert {len(batch) for batch in found[:10]} == {10}
    assert found == drawn(3, 1)
    assert found not in (drawn(4, 1), drawn(3, 2), [sorted(batch) for batch in found])


def test_a_training_of_few_steps_over_many_rows_has_a_curve(graft: Graft, write_dataset: WriteDataset) -> None:
    pairs = [(f"{head} nephrolith {number}", f"{head} {number} stone") for head in HEADS for number in range(40)]
    dataset = write_dataset("terms", "pairs", ("anchor", "positive"), train=pairs)
    _, result = train(graft, [dataset], batch_size=2, arguments={"max_steps": 2})
    assert [entry["step"] for entry in result.curve if "loss" in entry] == [1, 2]


def test_tokens_that_no_training_text_holds_are_reported_apart(graft: Graft, write_dataset: WriteDataset) -> None:
    columns = ("anchor", "positive")
    rows = {"train": [("a nephrolith", "a stone"), ("a dog", "-> a cat")], "test": [("a thrombopenia", "blood")]}
    dataset = write_dataset("terms", "pairs", columns, **rows)
    tokenizer = load(graft.resized).tokenizer
    names = {token.id: token.text for token in graft.tokens}
    lacking = ids_without_text(tokenizer, [dataset], graft.new_ids)
    assert [names[token] for token in lacking] == ["Thrombopenia", "<|IsA|>"]
    assert ids_without_text(tokenizer, [], graft.new_ids) == graft.new_ids


@pytest.mark.parametrize("method", ["tokens", "lora_and_tokens", "lora"])
def test_rows_that_become_attention_sinks_are_set_back_while_they_train(
    graft: Graft, datasets: list[AcceptedDataset], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    # The tiny base's words reach its first token, so that no ratio tells a sink; here the first word counts as one.
    monkeypatch.setattr(sinks, "sink_limits", lambda *_: sinks.SinkLimits(0.5, 0.75))
    monkeypatch.setattr(sinks.SinkProbe, "ratios", lambda probe, _: np.arange(probe.tokens) == 0)
    model, result = train(graft, datasets, method=method)
    if method == "lora":
        assert result.set_back == {}
        return
    assert list(result.set_back) == ["nephrolith"]
    rows = next(tensor for name, tensor in parts(model).items() if "trainable_tokens_delta" in name)
    start = rows_of(load(graft.resized))[graft.new_ids]
    assert torch.equal(rows[0], start[0])
    assert not torch.equal(rows[1], start[1])


def test_weights_are_looked_at_before_they_are_evaluated_and_once_more_at_the_end(
    graft: Graft, datasets: list[AcceptedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[str]()
    own = AdapterTrainer.evaluate
    monkeypatch.setattr(sinks.RowGuard, "look", lambda *_: seen.append("look"))
    monkeypatch.setattr(sinks.RowGuard, "finish", lambda *_: seen.append("finish"))
    monkeypatch.setattr(
        AdapterTrainer, "evaluate", lambda *given, **named: seen.append("evaluate") or own(*given, **named)
    )
    train(graft, datasets, best_metric="eval_loss")
    # An evaluation of several datasets calls itself for each.
    events = [event for event, _ in itertools.groupby(seen)]
    assert "evaluate" in events
    assert all(events[place - 1] == "look" for place, event in enumerate(events) if event == "evaluate")
    assert seen[-1] == "finish"


GENERAL = ("the dog", "a red fish and a cat", "the animal is big", "an old kidney", "the nephrolith")


@pytest.mark.parametrize("method", ["lora", "lora_and_tokens", "full"])
def test_general_texts_stay_nearer_to_the_base_the_more_they_weigh(
    graft: Graft, datasets: list[AcceptedDataset], method: str
) -> None:
    texts = list(GENERAL[:4])
    before = load(graft.resized).encode(texts, normalize_embeddings=True)

    def distance(**changes: Any) -> float:
        model, params = load(graft.resized), train_params(method=method, learning_rate=5e-3, epochs=3, **changes)
        result = train_adapter(model, datasets, graft.new_ids, params, 3, general_texts=GENERAL)
        # What is retained is no example to learn from.
        assert result.examples == 24
        return float(1 - (model.encode(texts, normalize_embeddings=True) * before).sum(axis=1).mean())

    free, light, heavy = (distance(), distance(retain={"weight": 1.0}), distance(retain={"weight": 30.0}))
    assert heavy < light < free


def test_retain_without_a_general_text_is_refused(graft: Graft, datasets: list[AcceptedDataset]) -> None:
    params = train_params(method="lora", retain={"weight": 1.0})
    with pytest.raises(VocabgraftError, match=r"retain\.texts"):
        train_adapter(load(graft.resized), datasets, graft.new_ids, params, 3, general_texts=["the nephrolith"])
