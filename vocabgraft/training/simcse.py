"""SimCSE (Gao et al., 2021, "SimCSE: Simple Contrastive Learning of Sentence Embeddings") on plain texts."""

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss


class SimCSELoss(MultipleNegativesRankingLoss):  # type: ignore[misc]
    """MultipleNegativesRankingLoss over (text, text): each text is embedded twice, and only dropout distinguishes them.

    A dataset has one column of texts. Without dropout both embeddings of a text are equal, so there is nothing to
    learn.
    """

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of a batch of texts; `labels` are ignored."""
        (features,) = sentence_features
        # Copies, since modules change the features passed to them.
        loss: torch.Tensor = super().forward([dict(features), dict(features)], labels)
        return loss
