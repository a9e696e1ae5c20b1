#!/usr/bin/env python3
"""Make token files and multiple-choice files for mudman-mpi; `--help` explains the use.

The split is the paper's: a permutation p of the n records from NumPy's default_rng(42); the first
ceil(n / 2) of p are the test part, the others the train split; the test part is split again the
same way into test and validation. Filters on fields and text come before the split. After it
every record is tokenised, cut to the context and dropped when shorter, so that every row is full,
as in the study; or, where asked for, padded, and the file says how long it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from multiple_choice import question_prompt, right_answer, tokenize_questions
from prepare_options import parse_arguments
from prepare_pairs import (
    DEFAULT_TEMPLATE,
    MESSAGES,
    ChatTemplate,
    PairReader,
    Sample,
    Template,
    plain_samples,
)
from python_functions import read_functions
from python_strip import strip_python
from record_files import ALL_SUFFIXES, RECORD_SUFFIXES, ends_in
from text_files import find_files, read_field, read_plain_texts, read_records
from text_records import Condition, InputError, TextFilter
from text_tokenizer import TextTokenizer, open_tokenizer
from token_files import (
    Origin,
    TokenRows,
    file_sha256,
    write_multiple_choice_file,
    write_token_file,
)
from tool_ends import FAILED, fault_status, fault_words, run_tool

EXIT_BAD_INPUT = 2
SPLIT_SEED = 42
TOKENIZE_AT_ONCE = 512
EXAMPLE_CHARACTERS = 200
ALL = "all"


@dataclass
class Corpus:
    """The records chosen, and how they were come by."""

    samples: list[Sample]
    read: int
    by_where: int  # left out, and so by --match and --exclude
    by_match: int
    left_out: int  # functions that are copies: packages bring copies of others
    copies: int  # records that are kept and say what another one says
    unparsable: int  # files, and those of folders that are of no format that is read
    of_other_kinds: int
    source: str


@dataclass
class Split:
    """One of the three splits in tokens, or all; `lengths` are those of its records before the cut.

    Records of `too_short` are dropped; of prompts, where the answer begins behind the context.
    """

    name: str
    rows: np.ndarray
    lengths: list[int]
    too_short: int
    row_lengths: np.ndarray | None = None  # of padded rows
    answers: np.ndarray | None = None  # where those of pairs begin

    @property
    def tokens(self) -> int:
        """Without padding."""
        return self.rows.size if self.row_lengths is None else int(self.row_lengths.sum())

    @property
    def place(self) -> str:
        return "the input" if self.name == ALL else f"the {self.name} split"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parse_arguments(arguments)
    try:
        if options.multiple_choice:
            prepare_questions(options)
        else:
            prepare_tokens(options)
    except InputError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(fault_words(error), fault_status(error))
    except MemoryError as error:
        return _fail(f"not enough memory: {error}", FAILED)
    return 0


def _fail(message: str, status: int = EXIT_BAD_INPUT) -> int:
    # A message may quote the input; it stays one line all the same.
    print(f"prepare_data.py: {' '.join(message.split())}", file=sys.stderr)
    return status


def prepare_tokens(options: argparse.Namespace) -> None:
    """Text or functions to the three token files."""
    tokenizer = open_tokenizer(options.tokenizer, not options.no_special_tokens)
    corpus = read_corpus(options)
    if not corpus.samples:
        raise InputError(f"no record left: {corpus.read} read, the filters keep none")
    parts = {ALL: np.arange(len(corpus.samples))} if options.no_split else None
    splits = []
    for name, indices in (parts or paper_split(len(corpus.samples))).items():
        samples = [corpus.samples[i] for i in indices]
        splits.append(tokenize_split(name, samples, tokenizer, options))
    # All are checked before the first is written: three files that belong together, or none.
    for split in splits:
        check_split(split, options)
    paths = {}
    for split in splits:
        suffix = "" if options.no_split else f"-{split.name}"
        paths[split.name] = options.output.with_name(f"{options.output.name}{suffix}.h5")
        part = "all" if options.no_split else f"{split.name} split of"
        source = f"{corpus.source}; {part} {len(corpus.samples)} records"
        origin = Origin(tokenizer.vocab_size, tokenizer.name, source)
        rows = TokenRows(split.rows, split.row_lengths, split.answers)
        write_token_file(paths[split.name], rows, origin)
    print_summary(corpus, splits, paths, tokenizer, options)


def read_corpus(options: argparse.Namespace) -> Corpus:
    """Read the records that the filters keep, in the order of the input."""
    wanted = TextFilter.compile(options.match, options.exclude)
    conditions = [Condition.parse(text) for text in options.where]
    pairs = pair_reader(options) if options.pairs else None
    suffixes = (".py",) if options.python_functions else ALL_SUFFIXES
    suffixes = RECORD_SUFFIXES if pairs else suffixes
    files, others = find_files(options.inputs, suffixes)
    samples, read, by_where, unparsable, left_out, copies = [], 0, 0, 0, 0, 0
    seen: set[str] = set()
    for path in tqdm(files, desc="reading", unit="file", disable=None):
        records = read_samples(path, options, conditions, pairs)
        if records is None:
            unparsable += 1
            continue
        for sample in records:
            read += 1
            by_where += sample is None
            if sample is not None and options.strip_python:
                sample = Sample(strip_python(sample.text))
            if sample is None or not wanted.holds(sample.text):
                continue
            if options.python_functions and sample.text in seen:
                left_out += 1
                continue
            copies += sample.text in seen
            seen.add(sample.text)
            samples.append(sample)
    by_match = read - by_where - left_out - len(samples)
    source = source_words(options, conditions, wanted, pairs)
    counts = (read, by_where, by_match, left_out, copies, unparsable, len(others))
    return Corpus(samples, *counts, source)


def source_words(
    options: argparse.Namespace,
    conditions: Sequence[Condition],
    wanted: TextFilter,
    pairs: PairReader | None,
) -> str:
    """What the files say of where they come from."""
    words = [", ".join(given.resolve().name for given in options.inputs)]
    if pairs:
        words += [f"fields={','.join(pairs.fields)}", f"template={pairs.words}"]
    else:
        words.append(
            "functions" if options.python_functions else f"field={options.field or 'text'}"
        )
    words += ["Python, comments stripped"] if options.strip_python else []
    words += [f"where={condition}" for condition in conditions] + [str(wanted)]
    words += ["packed"] if options.pack else ["padded"] if options.pad else []
    return " ".join(filter(None, words))


def pair_reader(options: argparse.Namespace) -> PairReader:
    """Of prompts with answers, or chats."""
    return PairReader(
        options.prompt_field,
        options.answer_field,
        options.field or MESSAGES,
        None if options.chat else Template(options.template or DEFAULT_TEMPLATE),
        ChatTemplate(options.tokenizer) if options.chat else None,
    )


def read_samples(
    path: Path,
    options: argparse.Namespace,
    conditions: Sequence[Condition],
    pairs: PairReader | None,
) -> Iterator[Sample | None] | None:
    """Yield a file's samples; None stands for a record that a condition leaves out."""
    if pairs:
        return pairs.read(path, conditions)
    if options.python_functions:
        functions = read_functions(path)
        return None if functions is None else plain_samples(iter(functions))
    return plain_samples(read_texts(path, options, conditions))


def read_texts(
    path: Path, options: argparse.Namespace, conditions: Sequence[Condition]
) -> Iterator[str | None]:
    """Yield a file's texts; None stands for a record that a condition leaves out."""
    if ends_in(path, RECORD_SUFFIXES):
        return read_field(path, options.field or "text", conditions)
    if conditions or options.field:
        option = "--where" if conditions else "--field"
        raise InputError(
            f"{path}: {option} needs JSON lines or parquet ({' '.join(RECORD_SUFFIXES)}): "
            "plain text has no fields"
        )
    return read_plain_texts(path, options.records or "paragraph")


def paper_split(n: int) -> dict[str, np.ndarray]:
    """Return the record numbers of each split, in the permuted order."""
    test_part, train = _halve(np.arange(n))
    test, validation = _halve(test_part)
    return {"train": train, "validation": validation, "test": test}


def _halve(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (test, train) of the records; the generator starts anew, as in the paper's code."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(records))
    test_n = (len(records) + 1) // 2
    return records[order[:test_n]], records[order[test_n:]]


def tokenize_split(
    name: str, samples: Sequence[Sample], tokenizer: TextTokenizer, options: argparse.Namespace
) -> Split:
    """Tokenise; cut to the context and drop what is shorter, or pad, or pack."""
    context = options.context
    records, lengths, answers = [], [], []
    with tqdm(total=len(samples), desc=f"tokenizing {name}", unit="record", disable=None) as shown:
        for start in range(0, len(samples), TOKENIZE_AT_ONCE):
            some = samples[start : start + TOKENIZE_AT_ONCE]
            texts = [f"{s.text}\n" if options.pack else s.text for s in some]
            encoded = tokenizer.encode_from(texts, [s.answer_at for s in some])
            for ids, answer in encoded:
                lengths.append(len(ids))
                least = 0 if options.pack else max(2, answer + 1) if options.pad else context
                if min(len(ids), context) >= least or options.pack:
                    records.append(np.asarray(ids if options.pack else ids[:context], np.uint32))
                    answers.append(answer)
            shown.update(len(some))
    too_short = len(samples) - len(records)
    if options.pad:
        rows = np.zeros((len(records), context), np.uint32)
        for row, record in zip(rows, records, strict=True):
            row[: len(record)] = record
        own = np.asarray([len(record) for record in records], np.uint32)
        begins = np.asarray(answers, np.uint32) if options.pairs else None
        return Split(name, rows, lengths, too_short, own, begins)
    tokens = np.concatenate([np.empty(0, np.uint32), *records])
    rows = tokens[: len(tokens) // context * context].reshape(-1, context)
    return Split(name, rows, lengths, too_short)


def check_split(split: Split, options: argparse.Namespace) -> None:
    """Refuse a split without a row, saying why it has none."""
    if len(split.rows):
        return
    if not split.lengths:
        raise InputError(
            f"{split.place} has no record: the paper's split needs 3 or more; give more text"
        )
    if options.pack:
        raise InputError(
            f"too little text: {split.place} has {sum(split.lengths)} tokens, a row "
            f"{options.context}; lower --context or give more text"
        )
    if options.pairs:
        raise InputError(
            f"no answer of {split.place} begins within {options.context} tokens: raise --context"
        )
    raise InputError(
        f"no example long enough: none of the {len(split.lengths)} records of {split.place} "
        f"has {options.context} tokens, the longest has {max(split.lengths)}; "
        "lower --context or give longer text"
    )


def print_summary(
    corpus: Corpus,
    splits: Sequence[Split],
    paths: dict[str, Path],
    tokenizer: TextTokenizer,
    options: argparse.Namespace,
) -> None:
    """Print what was read, what was kept, and the files with their hashes."""
    print(f"records: {corpus.read} read, {len(corpus.samples)} kept by the filters")
    if corpus.unparsable:
        print(f"files left out because they do not parse: {corpus.unparsable}")
    if corpus.of_other_kinds:
        print(f"files of the folders left out because of their suffix: {corpus.of_other_kinds}")
    print(f"tokenizer: {tokenizer.name}, vocabulary {tokenizer.vocab_size}")
    print(
        f"{'split':<12}{'records':>9}{'too short':>11}{'examples':>10}{'tokens':>11}  "
        "file and its sha256"
    )
    for split in splits:
        records, rows, tokens = len(split.lengths), len(split.rows), split.tokens
        print(
            f"{split.name:<12}{records:>9}{split.too_short:>11}{rows:>10}{tokens:>11}  "
            f"{paths[split.name]}"
        )
        print(f"{'':<55}{file_sha256(paths[split.name])}")
    print(f"dropped: {dropped_words(corpus, splits, options)}")
    if corpus.copies:
        shared = "" if options.no_split else ": train, validation and test may share their texts"
        print(f"kept, but copies of other records: {corpus.copies}{shared}")
    print(f"example, the first row of {paths[splits[0].name]}:")
    first = (
        splits[0].rows[0]
        if splits[0].row_lengths is None
        else splits[0].rows[0][: splits[0].row_lengths[0]]
    )
    begin = 0 if splits[0].answers is None else splits[0].answers[0]
    if begin:
        print(f"    read:   {example(tokenizer, first[:begin])}")
        print(f"    learnt: {example(tokenizer, first[begin:])}")
    else:
        print(f"    {example(tokenizer, first)}")


def dropped_words(corpus: Corpus, splits: Sequence[Split], options: argparse.Namespace) -> str:
    """How many records are in no file, and why."""
    least = f"shorter than {2 if options.pad else options.context} tokens"
    why = f"whose answer begins behind {options.context} tokens" if options.pairs else least
    dropped = {
        "by --where": corpus.by_where,
        "by --match or --exclude": corpus.by_match,
        "copies of others": corpus.left_out,
        why: sum(s.too_short for s in splits),
    }
    return ", ".join(f"{count} {why}" for why, count in dropped.items() if count) or "none"


def example(tokenizer: TextTokenizer, tokens: np.ndarray) -> str:
    """The beginning of what tokens say, on one line: line breaks and the like as escapes."""
    text = tokenizer.decode([int(token) for token in tokens])
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return shown if len(shown) <= EXAMPLE_CHARACTERS else shown[:EXAMPLE_CHARACTERS] + " ..."


def prepare_questions(options: argparse.Namespace) -> None:
    """Questions to a multiple-choice file."""
    tokenizer = open_tokenizer(options.tokenizer, not options.no_special_tokens)
    conditions = [Condition.parse(text) for text in options.where]
    read, asked = 0, []
    fields = ["question", "choices", "answer", *(condition.field for condition in conditions)]
    fields += [options.describe] if options.describe else []
    files, _ = find_files(options.inputs, RECORD_SUFFIXES)
    for path in files:
        for place, record in read_records(path, fields):
            read += 1
            if all(condition.holds(record, place) for condition in conditions):
                prompt = question_prompt(record, place, options.describe, options.about)
                asked.append((prompt, right_answer(record, place)))
    if not asked:
        raise InputError(f"no question left: {read} read, --where keeps none")
    asked.sort(
        key=lambda question: len(question[0])
    )  # stable: equal lengths keep the input's order
    questions = tokenize_questions(asked, tokenizer)
    words = [", ".join(given.resolve().name for given in options.inputs)]
    words += [f"where={condition}" for condition in conditions]
    words += [f"describe={options.describe}"] if options.describe else []
    words += [f"about={options.about}"] if options.about else []
    path = options.output.with_name(f"{options.output.name}.h5")
    write_multiple_choice_file(
        path, questions, Origin(tokenizer.vocab_size, tokenizer.name, " ".join(words))
    )
    lengths = [len(question.prompt) for question in questions]
    print(f"questions: {read} read, {len(questions)} kept")
    print(f"dropped: {f'{read - len(questions)} by --where' if read > len(questions) else 'none'}")
    print(f"tokenizer: {tokenizer.name}, vocabulary {tokenizer.vocab_size}")
    print(f"prompt tokens: {sum(lengths)} in all, {min(lengths)} to {max(lengths)} in one")
    print(f"answer tokens: {' '.join(map(str, questions[0].choices))}")
    print(f"{path}  {file_sha256(path)}")
    print(f"example, the first question; {'ABCD'[questions[0].answer]} is right:")
    print(f"    {example(tokenizer, np.asarray(questions[0].prompt))}")


if __name__ == "__main__":
    sys.exit(run_tool("prepare_data.py", main))
