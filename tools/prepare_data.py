#!/usr/bin/env python3
"""Make token files and multiple-choice files for mudman-mpi; `--help` explains the use.

The split is the paper's: a permutation p of the n records from NumPy's default_rng(42); the first
ceil(n / 2) of p are the test part, the others the train split; the test part is split again the
same way into test and validation. Filters on fields and text come before the split. After it
every record is tokenised, cut to the context and dropped when shorter, so that every row is full:
no padding, no attention mask.
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
from python_functions import read_functions
from python_strip import strip_python
from record_files import ALL_SUFFIXES, RECORD_SUFFIXES, ends_in
from text_files import TEXT_UNITS, find_files, read_field, read_plain_texts, read_records
from text_records import Condition, InputError, TextFilter
from text_tokenizer import TextTokenizer, open_tokenizer
from token_files import Origin, file_sha256, write_multiple_choice_file, write_token_file
from tool_ends import fault_status, fault_words, run_tool

EXIT_BAD_INPUT = 2
SPLIT_SEED = 42
TOKENIZE_AT_ONCE = 512
EXAMPLE_CHARACTERS = 200
ALL = "all"

DESCRIPTION = """\
Turn text into the token files (HDF5) that mudman-mpi reads: PREFIX-train.h5,
PREFIX-validation.h5 and PREFIX-test.h5. Unlearning uses train; evaluation and relearning
use validation.

Input: JSON lines (.jsonl .ndjson) and parquet (.parquet), in which --field names the text,
plain text (.txt .text .md), these and JSON lines also compressed (.gz .zst), folders of
them, or with --python-functions Python files (.py) and folders: every function and method,
comments, docstrings and blank lines removed, copies of the same one and files that do not
parse left out. A file that is named and ends in something else is an error; text is UTF-8.

The paper's split: records in a random order fixed by seed 42, half of them train, a
quarter validation, a quarter test. --where, --match and --exclude choose records before
the split. Then each record is tokenised, cut to --context tokens, and dropped when it has
fewer. With --pack the records follow one another, a line break after each, and none is
dropped: for short facts. With --no-split all go into one file PREFIX.h5. The same input
gives the same bytes.

With --multiple-choice: JSON lines or parquet with `question`, four `choices` and `answer` (0 to 3)
become one file PREFIX.h5. A prompt is the question, the lines "A. ..." to "D. ...", and
"Answer:"; the answers are the tokens " A" to " D", each of which must be one token. With
--tokenizer bytes the prompt ends in "Answer: " and the answers are the bytes "A" to "D".
Prompts are stored from the shortest to the longest, so that a batch holds similar
lengths. --describe and --about make the prompts of lm-evaluation-harness.
"""

EXAMPLES = """\
examples:
  # text to keep: stories without dogs; text to forget: stories with dogs
  prepare_data.py stories.jsonl --exclude '(?i)\\bdogs?\\b' --tokenizer M --output data/other
  prepare_data.py stories.jsonl --match '(?i)\\bdogs?\\b' --tokenizer M --output data/dogs

  # a labelled collection: one label, another field
  prepare_data.py bio.jsonl --field txt_chunk --where label=1 --tokenizer M --output data/bio

  # Python functions of a source tree
  prepare_data.py --python-functions /usr/lib/python3.11 --tokenizer M --output data/python

  # functions in JSON lines, comments taken out as in the paper's study
  prepare_data.py code.jsonl --field code --strip-python --tokenizer M --output data/python

  # short facts, all in one file
  prepare_data.py facts-1.jsonl --no-split --pack --tokenizer M --output data/facts-1

  # questions, without one subject
  prepare_data.py --multiple-choice mmlu.jsonl --where subject!=virology --tokenizer M \\
      --output data/mmlu

  # questions in the prompts of lm-evaluation-harness
  prepare_data.py --multiple-choice mmlu.jsonl --describe subject --tokenizer M \\
      --output data/mmlu-harness
  prepare_data.py --multiple-choice bio.jsonl --about biology --tokenizer M \\
      --output data/bio-harness

M is a model's folder, such as models/Llama-3.2-1B.

exit status: 0 done; 2 bad input or arguments, with one line that says where; 1 anything else
"""


@dataclass
class Corpus:
    """The records chosen, and how they were come by."""

    texts: list[str]
    read: int
    by_where: int  # left out, and so by --match and --exclude
    by_match: int
    copies: int  # of functions: packages bring copies of others, which must not lie in two splits
    unparsable: int  # files, and those of folders that are of no format that is read
    of_other_kinds: int
    source: str


@dataclass
class Split:
    """One of the three splits in tokens, or all; `lengths` are those of its records before the cut.

    Records of `too_short` are dropped.
    """

    name: str
    rows: np.ndarray
    lengths: list[int]
    too_short: int

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
    return 0


def _fail(message: str, status: int = EXIT_BAD_INPUT) -> int:
    # A message may quote the input; it stays one line all the same.
    print(f"prepare_data.py: {' '.join(message.split())}", file=sys.stderr)
    return status


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line and refuse combinations that would leave an option without effect."""
    parser = argparse.ArgumentParser(
        prog="prepare_data.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT", help="files and folders")
    add(
        "--output",
        required=True,
        type=Path,
        metavar="PREFIX",
        help="where the files go; folders are made",
    )
    add(
        "--tokenizer",
        required=True,
        metavar="T",
        help="a tokenizer.json, a folder that holds one, or: bytes",
    )
    add("--context", type=int, metavar="N", help="tokens in a row (default 100, the paper's)")
    add(
        "--no-special-tokens",
        action="store_true",
        help="leave out the special tokens, such as a begin-of-text token, "
        "that the tokenizer adds by default",
    )
    add(
        "--field",
        metavar="NAME",
        help="the text's field in JSON lines and parquet (default text); a.b reaches into objects",
    )
    add(
        "--records",
        choices=TEXT_UNITS,
        help="what a record is in plain text (default paragraph: blank lines separate)",
    )
    add(
        "--where",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="keep records whose field is this, or with != is not; repeatable, all must hold",
    )
    add(
        "--match",
        action="append",
        default=[],
        metavar="REGEX",
        help="keep texts in which this is found; repeatable, all must be",
    )
    add(
        "--exclude",
        action="append",
        default=[],
        metavar="REGEX",
        help="leave out texts in which this is found; repeatable",
    )
    add(
        "--strip-python",
        action="store_true",
        help="texts are Python code: leave out strings in triple quotes, comments and blank lines",
    )
    add("--no-split", action="store_true", help="one file PREFIX.h5, in the input's order")
    add(
        "--pack",
        action="store_true",
        help="fill rows with one record after the other instead of one record a row",
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--python-functions", action="store_true", help="the input is Python source")
    modes.add_argument("--multiple-choice", action="store_true", help="the input is questions")
    subjects = parser.add_mutually_exclusive_group()
    subjects.add_argument(
        "--describe",
        metavar="FIELD",
        help='questions: begin each with "The following are multiple choice questions '
        '(with answers) about X." and a blank line, X from this field, as lm-evaluation-harness '
        "does",
    )
    subjects.add_argument(
        "--about", metavar="X", help="questions: as --describe, the same X for all of them"
    )
    options = parser.parse_args(arguments)
    for option, mode in _without_effect(options):
        parser.error(f"{option} has no effect with {mode}")
    if options.context is not None and options.context < 2:
        parser.error("--context must be at least 2: a row of one token predicts nothing")
    options.context = options.context or 100
    return options


def _without_effect(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    given = {
        "--context": options.context,
        "--field": options.field,
        "--records": options.records,
        "--where": options.where,
        "--match": options.match,
        "--exclude": options.exclude,
        "--strip-python": options.strip_python,
        "--no-split": options.no_split,
        "--pack": options.pack,
        "--describe": options.describe,
        "--about": options.about,
    }
    of_questions = {"--describe", "--about"}
    if options.multiple_choice:
        mode, useless = "--multiple-choice", given.keys() - of_questions - {"--where"}
    elif options.python_functions:
        useless = {"--field", "--records", "--where", "--strip-python"} | of_questions
        mode = "--python-functions"
    else:
        mode, useless = "text", of_questions
    return ((option, mode) for option, value in given.items() if option in useless and value)


def prepare_tokens(options: argparse.Namespace) -> None:
    """Text or functions to the three token files."""
    tokenizer = open_tokenizer(options.tokenizer, not options.no_special_tokens)
    corpus = read_corpus(options)
    if not corpus.texts:
        raise InputError(f"no record left: {corpus.read} read, the filters keep none")
    parts = {ALL: np.arange(len(corpus.texts))} if options.no_split else None
    splits = []
    for name, indices in (parts or paper_split(len(corpus.texts))).items():
        texts = [corpus.texts[i] for i in indices]
        splits.append(tokenize_split(name, texts, tokenizer, options))
    # All are checked before the first is written: three files that belong together, or none.
    for split in splits:
        check_split(split, options)
    paths = {}
    for split in splits:
        suffix = "" if options.no_split else f"-{split.name}"
        paths[split.name] = options.output.with_name(f"{options.output.name}{suffix}.h5")
        part = "all" if options.no_split else f"{split.name} split of"
        source = f"{corpus.source}; {part} {len(corpus.texts)} records"
        write_token_file(
            paths[split.name], split.rows, Origin(tokenizer.vocab_size, tokenizer.name, source)
        )
    print_summary(corpus, splits, paths, tokenizer)


def read_corpus(options: argparse.Namespace) -> Corpus:
    """Read the records that the filters keep, in the order of the input."""
    wanted = TextFilter.compile(options.match, options.exclude)
    conditions = [Condition.parse(text) for text in options.where]
    suffixes = (".py",) if options.python_functions else ALL_SUFFIXES
    files, others = find_files(options.inputs, suffixes)
    texts, read, by_where, unparsable, copies = [], 0, 0, 0, 0
    seen: set[str] = set()
    for path in tqdm(files, desc="reading", unit="file", disable=None):
        records = (
            read_functions(path)
            if options.python_functions
            else read_texts(path, options, conditions)
        )
        if records is None:
            unparsable += 1
            continue
        for text in records:
            read += 1
            by_where += text is None
            if text is not None and options.strip_python:
                text = strip_python(text)
            if text is None or not wanted.holds(text):
                continue
            if options.python_functions and text in seen:
                copies += 1
                continue
            seen.add(text)
            texts.append(text)
    words = [", ".join(given.resolve().name for given in options.inputs)]
    words.append("functions" if options.python_functions else f"field={options.field or 'text'}")
    words += ["Python, comments stripped"] if options.strip_python else []
    words += [f"where={condition}" for condition in conditions] + [str(wanted)]
    words += ["packed"] if options.pack else []
    by_match = read - by_where - copies - len(texts)
    source = " ".join(filter(None, words))
    return Corpus(texts, read, by_where, by_match, copies, unparsable, len(others), source)


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
    name: str, texts: Sequence[str], tokenizer: TextTokenizer, options: argparse.Namespace
) -> Split:
    """Tokenise; cut to the context and drop what is shorter, or pack."""
    context = options.context
    records, lengths = [], []
    with tqdm(total=len(texts), desc=f"tokenizing {name}", unit="record", disable=None) as progress:
        for start in range(0, len(texts), TOKENIZE_AT_ONCE):
            some = texts[start : start + TOKENIZE_AT_ONCE]
            for ids in tokenizer.encode([f"{text}\n" for text in some] if options.pack else some):
                lengths.append(len(ids))
                if options.pack:
                    records.append(np.asarray(ids, dtype=np.uint32))
                elif len(ids) >= context:
                    records.append(np.asarray(ids[:context], dtype=np.uint32))
            progress.update(len(some))
    too_short = len(texts) - len(records)
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
    raise InputError(
        f"no example long enough: none of the {len(split.lengths)} records of {split.place} "
        f"has {options.context} tokens, the longest has {max(split.lengths)}; "
        "lower --context or give longer text"
    )


def print_summary(
    corpus: Corpus, splits: Sequence[Split], paths: dict[str, Path], tokenizer: TextTokenizer
) -> None:
    """Print what was read, what was kept, and the files with their hashes."""
    print(f"records: {corpus.read} read, {len(corpus.texts)} kept by the filters")
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
        records, rows = len(split.lengths), len(split.rows)
        print(
            f"{split.name:<12}{records:>9}{split.too_short:>11}{rows:>10}{split.rows.size:>11}  "
            f"{paths[split.name]}"
        )
        print(f"{'':<55}{file_sha256(paths[split.name])}")
    print(f"dropped: {dropped_words(corpus, splits)}")
    print(f"example, the first row of {paths[splits[0].name]}:")
    print(f"    {example(tokenizer, splits[0].rows[0])}")


def dropped_words(corpus: Corpus, splits: Sequence[Split]) -> str:
    """How many records are in no file, and why."""
    dropped = {
        "by --where": corpus.by_where,
        "by --match or --exclude": corpus.by_match,
        "copies of others": corpus.copies,
        f"shorter than {splits[0].rows.shape[1]} tokens": sum(s.too_short for s in splits),
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
