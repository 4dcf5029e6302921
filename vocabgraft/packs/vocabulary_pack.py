"""`VocabularyPack`: a pack with `from_pretrained`, `save_pretrained` and `transfer`."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vocabgraft.config.stages import DistillationParams
from vocabgraft.packs.pack import Pack
from vocabgraft.packs.pack_files import read_pack, write_pack
from vocabgraft.packs.transfer import Carried, Method, carry_over

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class VocabularyPack(Pack):
    """New words with their embeddings, stored separately from their base.

    A `VocabularyBank` puts packs on one loaded model: `bank.put(pack)`.
    """

    @classmethod
    def of(cls, pack: Pack) -> Self:
        """A pack, such as one of a bank (`bank.pack(name)`), with these methods."""
        return cls(**{field.name: getattr(pack, field.name) for field in fields(Pack)})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read a pack from its folder; every file is checked against its hash.

        Raises:
            VocabgraftError: for a folder that is not a pack, or a damaged pack.
        """
        return cls.of(read_pack(Path(folder).expanduser()))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the pack to a folder, whole or not at all."""
        write_pack(self, Path(folder).expanduser())

    def transfer(
        self,
        model: "SentenceTransformer",
        *,
        method: Method = "distillation",
        source: "SentenceTransformer | None" = None,
        base_name: str | None = None,
        distillation: DistillationParams | None = None,
        seed: int = 17,
    ) -> Carried:
        """Transfer the words to another base.

        Args:
            model: the other base; it is not changed.
            method: `distillation` from the texts in the pack, or `source_distillation`, `matching_pursuit` and
                `least_squares`, which need `source`.
            source: the base that the pack was made for.
            base_name: of the other base, for the new pack; by default the last part of the model's name.
            distillation: its settings; None uses the defaults.
            seed: of the distillation.

        Returns:
            The new pack (`result.pack`), its fidelity (`result.quality`) and the tokens left out.

        Raises:
            VocabgraftError: for a pack without texts, a `source` that is not its base, or bases that share too few
                tokens.
        """
        name = base_name or Path(str(model[0].auto_model.name_or_path or "a model in memory")).name
        return carry_over(self, model, name, method, distillation or DistillationParams(), seed, source)
