"""A small base with a byte-level BPE tokenizer that finds paraphrases, distilled from all-MiniLM-L6-v2.

It learns all-MiniLM's embeddings of general phrases (CN-100K, STS-B dev) and of texts about the concepts of the
Chemical Methods Ontology that are not held out. Its tokenizer is trained only on the general phrases, so it splits the
words of the ontology into subword tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from benchmarks.chmo import Chmo, load_sts
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.encode import encode
from vocabgraft.models.saving import save_model
from vocabgraft.storage.artifacts import new_folder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerFast

WIDTH, LAYERS, VOCABULARY, LONGEST = 256, 2, 8_000, 48
PHRASES = 16_000
EPOCHS, BATCH, RATE = 4, 64, 2e-3


def make_small_base(folder: Path, teacher: "SentenceTransformer", data: Path, chmo: Chmo) -> None:
    """Make the model and save it; equal inputs give equal models."""
    general = [*_phrases(data / "cn-100k" / "train.txt"), *load_sts(data)[0], *load_sts(data)[1]]
    texts = list(dict.fromkeys([*general, *chmo.training_texts]))
    with new_folder(folder) as work:
        model = _untrained(work / "transformer", train_tokenizer(general))
        _learn(model, texts, _narrowed(encode(teacher, texts, BATCH)))
        save_model(model.eval(), work)


def train_tokenizer(texts: Sequence[str]) -> "PreTrainedTokenizerFast":
    """Byte-level BPE of lower-case text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<unk>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=LONGEST
    )


def _phrases(path: Path) -> list[str]:
    """A sample of the distinct heads and tails of the triples, in a fixed random order."""
    if not path.is_file():
        raise VocabgraftError(f"{path} is missing; give the folder that holds cn-100k/ with --data")
    lines = path.read_text(encoding="utf-8").splitlines()
    phrases = list(dict.fromkeys(phrase for line in lines for phrase in line.split("\t")[1:]))
    chosen = np.random.default_rng(11).permutation(len(phrases))[:PHRASES]
    return [phrases[place] for place in chosen]


def _untrained(folder: Path, tokenizer: "PreTrainedTokenizerFast") -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=LONGEST,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(WIDTH), Normalize()], device="cpu")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return model


def _narrowed(vectors: Any) -> torch.Tensor:
    """The embeddings reduced to the small base's width along their principal directions, scaled to length 1."""
    given = torch.from_numpy(vectors)
    directions = torch.linalg.eigh(given.T @ given).eigenvectors[:, -WIDTH:]
    return torch.nn.functional.normalize(given @ directions, dim=1)


def _learn(model: "SentenceTransformer", texts: Sequence[str], goals: torch.Tensor) -> None:
    # Without dropout, which would draw from the global generators.
    model.eval()
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([len(ids) for ids in model.tokenizer(list(texts))["input_ids"]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    batches = -(-len(texts) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, EPOCHS * batches)
    with tqdm(total=EPOCHS * batches, desc="the small base learns") as progress:
        for _ in range(EPOCHS):
            shuffled = torch.randperm(len(texts), generator=generator)
            by_length = torch.split(shuffled[lengths[shuffled].argsort(stable=True)], BATCH)
            for number in torch.randperm(batches, generator=generator).tolist():
                places = by_length[number]
                features = model.preprocess([texts[place] for place in places.tolist()])
                loss = 1 - (model(features)["sentence_embedding"] * goals[places]).sum(dim=1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                progress.update()
