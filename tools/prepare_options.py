"""The command line of prepare_data.py."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from text_files import TEXT_UNITS

MOST_CONTEXT = 10**6  # as of data.context_length

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
fewer. With --pad shorter ones are kept, and the file says how long each is. With --pack the
records follow one another, a line break after each, and none is dropped: for short facts. With
--no-split all go into one file PREFIX.h5. The same input gives the same bytes.

With --prompt-field and --answer-field: JSON lines or parquet with questions and answers, or what
else begins with what is given. The prompt is read, and only the answer is learnt. --template is
the text around both (default "{prompt} {answer}"; \\n is a line break); what stands behind {answer}
is learnt, too. With --chat the chat template of the tokenizer takes its place
(tokenizer_config.json or chat_template.jinja beside tokenizer.json); without fields for prompt and
answer records are chats then: --field (default messages) is a list of messages with role and
content, and the last one, of the assistant, is learnt. Such rows are padded always.

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

  # questions and answers; then the same as chats
  prepare_data.py qa.jsonl --prompt-field question --answer-field answer \\
      --template 'Question: {prompt}\\nAnswer: {answer}' --tokenizer M --output data/qa
  prepare_data.py qa.jsonl --prompt-field question --answer-field answer --chat --tokenizer M \\
      --output data/chat

  # facts of a few tokens, a row each
  prepare_data.py facts.jsonl --pad --context 32 --tokenizer M --output data/facts

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


def _prefix(text: str) -> Path:
    """The beginning of the files' names."""
    path = Path(text)
    if text.endswith("/") or path.name in ("", ".", ".."):
        raise argparse.ArgumentTypeError(
            f"'{text}' names a folder: the beginning of the files' names is missing, as in data/facts"
        )
    return path


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
        type=_prefix,
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
    add(
        "--pad",
        action="store_true",
        help="keep records that are shorter than a row: rows are padded, and padding is not learnt",
    )
    add("--prompt-field", metavar="NAME", help="the field of what is read and not learnt")
    add("--answer-field", metavar="NAME", help="the field of what is learnt")
    add("--template", metavar="T", help="the text around {prompt} and {answer}")
    add("--chat", action="store_true", help="use the tokenizer's own chat template")
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
    if options.context is not None and options.context > MOST_CONTEXT:
        parser.error(f"--context must be at most {MOST_CONTEXT}, as data.context_length")
    if options.pack and options.pad:
        parser.error("--pad has no effect with --pack")
    if bool(options.prompt_field) != bool(options.answer_field):
        parser.error("--prompt-field and --answer-field go together")
    if options.template and not options.prompt_field:
        parser.error("--template needs --prompt-field and --answer-field")
    options.context = options.context or 100
    options.pairs = bool(options.prompt_field or options.chat)
    options.pad = options.pad or options.pairs
    if options.chat:  # the template says which
        options.no_special_tokens = True
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
        "--no-special-tokens": options.no_special_tokens,
        "--pack": options.pack,
        "--pad": options.pad,
        "--prompt-field": options.prompt_field,
        "--answer-field": options.answer_field,
        "--template": options.template,
        "--chat": options.chat,
        "--describe": options.describe,
        "--about": options.about,
    }
    of_questions = {"--describe", "--about"}
    of_pairs = {"--prompt-field", "--answer-field", "--template", "--chat"}
    if options.multiple_choice:
        mode, useless = (
            "--multiple-choice",
            given.keys() - of_questions - {"--where", "--no-special-tokens"},
        )
    elif options.python_functions:
        useless = {"--field", "--records", "--where", "--strip-python"} | of_questions | of_pairs
        mode = "--python-functions"
    elif options.prompt_field or options.chat:
        useless = {"--records", "--strip-python", "--pack"} | of_questions
        useless |= {"--field"} if options.prompt_field else set()
        useless |= {"--template", "--no-special-tokens"} if options.chat else set()
        mode = "--chat" if options.chat else "--prompt-field"
    else:
        mode, useless = "text", of_questions
    return ((option, mode) for option, value in given.items() if option in useless and value)
