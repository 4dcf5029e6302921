"""Counts the words of a corpus of any size, in several processes and bounded memory, with an error bound."""

import multiprocessing
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Literal

from vocabgraft.errors import VocabgraftError
from vocabgraft.planning.corpus import Block, Part, read_blocks
from vocabgraft.planning.word_forms import WordForms, deleted_characters, parts_of
from vocabgraft.tokens.tokenizer import matches_inside

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from tokenizers import Tokenizer

Skipped = Literal["name", "identifier", "number"]

# Words joined by one of . / \ @ form a file name, a URL or an e-mail address.
NAME = re.compile(r"@\w|\w(?:\.|:?[/\\]+)\w|^[(\"'<\[]*[~.]{0,2}[/\\]\w")
NAME_CHARACTERS = frozenset("@./\\")
UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# snake_case; camelCase, but not mRNA, siRNA or McDonald; hexadecimal strings with a digit.
IDENTIFIER = re.compile(r"_|[a-z]{2}[A-Z][a-z]|[a-z]{4}[A-Z]|^(?:0[xX])?(?=[a-fA-F]*[0-9])[0-9a-fA-F]{6,}$")
# Punctuation around a word of prose; characters with which a path may begin are missing.
OPENING, CLOSING = "([{\"'", ".,;:!?)]}\"'"
ASCII_WORD = re.compile(r"\w+", re.ASCII)
# Forms repeat between blocks, so distinct forms are counted first, which leaves fewer to analyze.
SECTION_CHARACTERS = 16 << 20
REMEMBERED_FORMS = 1 << 18
SAMPLED_BYTES = 1 << 19


@dataclass
class WordCounts:
    """Counts of words in bounded memory: the summary of Misra and Gries, merged as in Agarwal et al.

    "Mergeable Summaries" (PODS 2012): if there are more counters than `capacity`, the largest count to be dropped is
    subtracted from every counter, and counters that reach 0 are dropped. So a count is never too high, and too low by
    at most `error`. The error is 0 while all distinct words fit, and at most the number of counted occurrences divided
    by half of `capacity`.

    Compounds such as `co-trimoxazole` are counted in addition to their words; `words` is the number of words.
    """

    capacity: int
    counts: dict[str, int] = field(default_factory=dict)
    error: int = 0
    words: int = 0
    texts: int = 0
    characters: int = 0
    sampled_texts: int = 0
    sampled_characters: int = 0
    sampled_tokens: int = 0
    skipped: dict[Skipped, int] = field(default_factory=dict)

    def add(self, counts: Mapping[str, int]) -> None:
        """Add occurrences of words."""
        mine = self.counts
        if not mine:
            # Usually the counter is empty, and copying takes a fraction of the time.
            mine.update(counts)
        else:
            for word, count in counts.items():
                mine[word] = mine.get(word, 0) + count
        self.words += sum(counts.values())
        self._prune()

    def add_compounds(self, counts: Mapping[str, int]) -> None:
        """Add occurrences of compounds; their words are counted separately."""
        words = self.words
        self.add(counts)
        self.words = words

    def skip(self, counts: Mapping[Skipped, int]) -> None:
        """Add occurrences of strings that are not words."""
        for reason, count in counts.items():
            self.skipped[reason] = self.skipped.get(reason, 0) + count

    def merge(self, other: "WordCounts") -> None:
        """Add the counts of `other`; the errors add up."""
        words = self.words + other.words
        self.error += other.error
        self.add(other.counts)
        self.words = words
        self.skip(other.skipped)
        self.texts += other.texts
        self.characters += other.characters
        self.sampled_texts += other.sampled_texts
        self.sampled_characters += other.sampled_characters
        self.sampled_tokens += other.sampled_tokens

    @property
    def tokens(self) -> float:
        """Tokens of all texts, without special tokens, estimated from the tokens per character of the sample."""
        return self.sampled_tokens / self.sampled_characters * self.characters if self.sampled_characters else 0.0

    def _prune(self) -> None:
        if len(self.counts) <= self.capacity:
            return
        import numpy as np

        # Down to half of the capacity, so that pruning is rare.
        leaving = len(self.counts) - self.capacity // 2
        counts = np.fromiter(self.counts.values(), dtype=np.int64, count=len(self.counts))
        cutoff = int(np.partition(counts, leaving - 1)[leaving - 1])
        self.counts = {word: count - cutoff for word, count in self.counts.items() if count > cutoff}
        self.error += cutoff


@dataclass(frozen=True)
class CountingJob:
    """The settings for every process: the base's tokenizer, the columns, the capacity, and the step of the sample.

    `segment` is whether scripts without spaces are divided into words.
    """

    tokenizer: "Tokenizer"
    columns: tuple[str, ...]
    capacity: int
    sample_step: int
    segment: bool = False


def count_words(
    parts: Sequence[Part],
    tokenizer: "Tokenizer",
    columns: Sequence[str],
    processes: int,
    capacity: int,
    advance: Callable[[int], None],
    segment: bool = False,
) -> WordCounts:
    """Count the words of a corpus after the base's normalization.

    A word is a string that a whole-word token can match: letters, marks and digits, with none of these on either side.
    Characters that the base removes, such as soft hyphens, do not separate words. Both a compound and its words are
    counted. File names, URLs, e-mail addresses, identifiers and numbers are skipped. The result does not depend on the
    number of processes, because the parts are merged in order.

    Args:
        parts: result of `vocabgraft.planning.corpus.split_files`.
        tokenizer: the base's tokenizer, not extended, without padding and truncation.
        columns: text columns of tables.
        processes: number of processes, at most one per part; 1 counts in this process.
        capacity: largest number of words counted at a time, per part and in total.
        advance: called with the number of bytes read.
        segment: divide scripts without spaces into words by ICU's dictionaries.

    Raises:
        VocabgraftError: for a part that cannot be read, a corpus without texts, a killed process, or `segment` without
            ICU.
    """
    step = max(1, sum(part.size for part in parts) // SAMPLED_BYTES)
    job = CountingJob(tokenizer, tuple(columns), capacity, step, segment)
    # Fails here without ICU, not in each process.
    WordForms(segment)
    processes = min(processes, len(parts))
    counted = _in_processes(parts, job, processes, advance) if processes > 1 else _in_this_process(parts, job, advance)
    total = WordCounts(capacity)
    for counts in counted:
        total.merge(counts)
    if not total.texts:
        raise VocabgraftError("the corpus has only blank texts; name files with text in them")
    return total


def count_blocks(blocks: Iterable[Block], counter: "FormCounter", job: CountingJob) -> WordCounts:
    """Count the words of blocks of texts; `counter` applies the base's normalization."""
    total = WordCounts(job.capacity)
    forms: Counter[str] = Counter()
    characters = 0
    for block in blocks:
        forms.update("\n".join(block.texts).split())
        _take_sample(total, block.texts, job)
        total.texts += len(block.texts)
        characters += sum(map(len, block.texts))
        if characters >= SECTION_CHARACTERS:
            counter.add_forms(forms, total)
            total.characters, characters = total.characters + characters, 0
            forms.clear()
    counter.add_forms(forms, total)
    total.characters += characters
    return total


class FormCounter:
    """Turns counts of strings between spaces into counts of words after the base's normalization."""

    def __init__(self, tokenizer: "Tokenizer", segment: bool = False) -> None:
        self._forms = WordForms(segment)
        normalizer = tokenizer.normalizer
        self._normalise = lru_cache(REMEMBERED_FORMS)(normalizer.normalize_str) if normalizer else str
        self._of_ascii = _ascii_normaliser(self._normalise)
        self._lower_stays = self._of_ascii in (str.lower, str)
        self._deleted = deleted_characters(self._normalise)

    def add_forms(self, forms: Mapping[str, int], total: WordCounts) -> None:
        """Add the words and compounds of the forms, each with its count, to `total`."""
        found = _Found()
        for form, count in forms.items():
            # A shortcut for plain words, which most forms are: the general path is several times slower.
            if self._lower_stays and form.islower() and form.isalpha() and form.isascii():
                found.words[form] = found.words.get(form, 0) + count
            else:
                self._add_form(form if form.isascii() else form.translate(self._deleted), count, found)
        total.add(found.words)
        total.add_compounds(found.compounds)
        total.skip(found.skipped)

    def _add_form(self, form: str, count: int, found: "_Found") -> None:
        inner = form.lstrip(OPENING).rstrip(CLOSING)
        if inner.isascii() and inner.isalpha():
            surfaces = [inner]
        elif _is_name(form, inner):
            found.skipped["name"] = found.skipped.get("name", 0) + count
            return
        else:
            surfaces = ASCII_WORD.findall(form) if form.isascii() else self._forms.words(form)
            self._add_compounds(form, count, found)
        for surface in surfaces:
            if reason := reason_to_skip(surface):
                found.skipped[reason] = found.skipped.get(reason, 0) + count
            else:
                word = self._normalised(surface)
                found.words[word] = found.words.get(word, 0) + count

    def _add_compounds(self, form: str, count: int, found: "_Found") -> None:
        for compound in self._forms.compounds(form):
            if not reason_to_skip(compound) and all(
                reason_to_skip(part) != "identifier" for part in parts_of(compound)
            ):
                word = self._normalise(compound).strip()
                # With another number of parts, the base changes the compound.
                if " " not in word and len(parts_of(word)) == len(parts_of(compound)):
                    found.compounds[word] = found.compounds.get(word, 0) + count

    def _normalised(self, surface: str) -> str:
        if surface.isascii():
            return self._of_ascii(surface)
        word = self._normalise(surface).strip()
        # BERT's normalizer puts spaces around each Chinese character, also within a word.
        return "".join(word.split()) if matches_inside(surface) else word


@dataclass
class _Found:
    """Counts of some forms before they are added to the bounded counts."""

    words: dict[str, int] = field(default_factory=dict)
    compounds: dict[str, int] = field(default_factory=dict)
    skipped: dict[Skipped, int] = field(default_factory=dict)


def _is_name(form: str, inner: str) -> bool:
    # The search is slow, and few forms can be names.
    may_be = not NAME_CHARACTERS.isdisjoint(inner)
    return (may_be and NAME.search(form) is not None) or (inner.count("-") == 4 and UUID.match(inner) is not None)


def reason_to_skip(surface: str) -> Skipped | None:
    """Why a string is not a word of the language; None if it is one."""
    if surface.isalpha() and (surface.islower() or surface.istitle() or surface.isupper()):
        return None
    if 2 * sum(map(str.isdigit, surface)) > len(surface):
        return "number"
    return "identifier" if IDENTIFIER.search(surface) else None


def _ascii_normaliser(normalise: Callable[[str], str]) -> Callable[[str], str]:
    """A faster function for ASCII words, if the base normalizes them as nearly all bases do."""
    letters = string.ascii_letters + string.digits
    after = normalise(letters)
    if after == letters.lower():
        return str.lower
    return str if after == letters else normalise


def _take_sample(total: WordCounts, texts: Sequence[str], job: CountingJob) -> None:
    # Every step-th text of the part; the count continues across blocks.
    sample = list(texts[-total.texts % job.sample_step :: job.sample_step])
    total.sampled_texts += len(sample)
    total.sampled_characters += sum(map(len, sample))
    encoded = job.tokenizer.encode_batch_fast(sample, add_special_tokens=False)
    total.sampled_tokens += sum(len(encoding.ids) for encoding in encoded)


def _count_part(part: Part, counter: FormCounter, job: CountingJob, advance: Callable[[int], None]) -> WordCounts:
    return count_blocks(_reported(read_blocks(part, job.columns), advance), counter, job)


def _reported(blocks: Iterable[Block], advance: Callable[[int], None]) -> Iterator[Block]:
    for block in blocks:
        yield block
        advance(block.size)


def _in_this_process(parts: Sequence[Part], job: CountingJob, advance: Callable[[int], None]) -> Iterator[WordCounts]:
    counter = FormCounter(job.tokenizer, job.segment)
    for part in parts:
        yield _count_part(part, counter, job, advance)


def _in_processes(
    parts: Sequence[Part], job: CountingJob, processes: int, advance: Callable[[int], None]
) -> Iterator[WordCounts]:
    with _started(job, processes) as connections:
        idle, busy = list(connections), dict[Connection, int]()
        done: dict[int, WordCounts] = {}
        following = merged = 0
        while merged < len(parts):
            # Results that wait for their turn stay in memory, so processes may be only a few parts ahead.
            while idle and following < min(len(parts), merged + 3 * processes):
                connection = idle.pop()
                connection.send(parts[following])
                busy[connection], following = following, following + 1
            for connection in _ready(busy):
                answer = _receive(connection, connections)
                if isinstance(answer, int):
                    advance(answer)
                else:
                    done[busy.pop(connection)] = answer
                    idle.append(connection)
            while merged in done:
                yield done.pop(merged)
                merged += 1


def _ready(busy: Mapping[Connection, int]) -> list[Connection]:
    return [connection for connection in wait(list(busy)) if isinstance(connection, Connection)]


def _receive(connection: Connection, processes: Mapping[Connection, "BaseProcess"]) -> int | WordCounts:
    try:
        answer: int | WordCounts | VocabgraftError = connection.recv()
    except (EOFError, ConnectionResetError) as error:
        process = processes[connection]
        process.join()
        raise VocabgraftError(
            f"a counting process ended with code {process.exitcode} (-9: killed, usually because memory ran out); "
            "use fewer --processes or fewer --counters"
        ) from error
    if isinstance(answer, VocabgraftError):
        raise answer
    return answer


@contextmanager
def _started(job: CountingJob, processes: int) -> Iterator[dict[Connection, "BaseProcess"]]:
    context = multiprocessing.get_context("spawn")
    started: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(processes):
            here, there = context.Pipe()
            process: BaseProcess = context.Process(target=_serve, args=(there, job), daemon=True)
            process.start()
            # Only the child keeps this end, so the connection ends with the child.
            there.close()
            started[here] = process
        yield started
    finally:
        for connection, process in started.items():
            process.terminate()
            process.join()
            connection.close()


def _serve(connection: Connection, job: CountingJob) -> None:
    """A counting process: receives parts; sends the numbers of bytes read, and a part's counts or its error."""
    counter = FormCounter(job.tokenizer, job.segment)
    # If the connection ends, the parent is gone.
    with suppress(EOFError, BrokenPipeError):
        while True:
            part: Part = connection.recv()
            try:
                connection.send(_count_part(part, counter, job, connection.send))
            except VocabgraftError as error:
                connection.send(error)
