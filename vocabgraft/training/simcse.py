"""SimCSE (Gao et al., 2021, "SimCSE: Simple Contrastive Learning of Sentence Embeddings") on plain texts."""

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss


class SimCSELoss(MultipleNegativesRankingLoss):  # type: ignore[misc]
    """MultipleNegativesRankingLoss over (text, text): each text is embedded twice, and only dropout tells them apart.

    A dataset has one column of texts. A model without dropout gives both embeddings of a text the same values, so there
    is nothing to learn from.
    """

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of a batch of texts; `labels` are not read."""
        (features,) = sentence_features
        # Copies, since modules write into the features that they are given.
        loss: torch.Tensor = super().forward([dict(features), dict(features)], labels)
        return loss
