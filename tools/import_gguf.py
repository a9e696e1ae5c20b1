#!/usr/bin/env python3
"""Make a model folder in the Hugging Face layout of a GGUF file; `--help` explains the use."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gguf_file import open_gguf
from gguf_model import GgufModel
from gguf_tokenizer import GgufTokenizer
from text_records import InputError
from tool_ends import BAD_INPUT, fault_status, fault_words, run_tool

DESCRIPTION = """\
Turn a GGUF file, llama.cpp's format, into a folder that mudman-mpi and transformers read:
config.json, model.safetensors, tokenizer.json and tokenizer_config.json.

Models of Llama, Mistral and Qwen2 in F32, F16, BF16 or any quantization that the package gguf
undoes. The weights are then those that the quantization left, not the original ones. What the
file sets and this does not know is an error. OUT must not exist, or be empty; nothing is left
there by half.
"""

EPILOG = """\
example:
  import_gguf.py SmolLM2-135M-Instruct.Q4_1.gguf models/SmolLM2-135M-Instruct

exit status: 0 done; 2 bad input or arguments, with one line that says where; 1 anything else
"""
# Bytes a number, and the name of the type in safetensors.
DTYPES = {"float32": (4, "F32"), "bfloat16": (2, "BF16")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parse_arguments(arguments)
    try:
        import_model(options.file, options.out, options.dtype)
    except InputError as error:
        return _fail(str(error), BAD_INPUT)
    except OSError as error:
        return _fail(fault_words(error), fault_status(error))
    return 0


def _fail(message: str, status: int) -> int:
    print(f"import_gguf.py: {' '.join(message.split())}", file=sys.stderr)
    return status


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="import_gguf.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the GGUF file")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the weights (default float32)"
    )
    return parser.parse_args(arguments)


def import_model(path: Path, out: Path, dtype: str) -> None:
    """Make the folder: first under another name, so that it is never there by half."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there already")
    file = open_gguf(path)
    model, tokenizer = GgufModel(file), GgufTokenizer(file)
    tokens, rows = len(tokenizer.tokens), model.config["vocab_size"]
    if tokens > rows:
        raise file.fault(f"the tokenizer has {tokens} tokens, the model {rows}")
    config = model.config | {"torch_dtype": dtype}
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.resolve().with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        write_safetensors(temporary / "model.safetensors", model, dtype)
        write_text(temporary / "config.json", as_json(config))
        write_text(temporary / "tokenizer.json", tokenizer.tokenizer.to_str(pretty=True) + "\n")
        write_text(temporary / "tokenizer_config.json", as_json(tokenizer.config))
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print_summary(model, out, dtype)


def write_safetensors(path: Path, model: GgufModel, dtype: str) -> None:
    """Write all tensors, one at a time in memory."""
    size, name_of_type = DTYPES[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, source in model.sources.items():
        start, end = end, end + size * int(np.prod(source.shape))
        header[name] = {"dtype": name_of_type, "shape": source.shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        tensors = tqdm(model.tensors(), total=len(model.sources), unit="tensor", disable=None)
        for _, values in tensors:
            write_all(file, values if dtype == "float32" else to_bfloat16(values))
        make_durable(file)


def write_all(file: object, values: np.ndarray) -> None:
    """Write numbers in the order of their rows, low byte first."""
    file.write(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).data)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round finite float32 to the nearest bfloat16, ties to even; the bits as 16-bit integers."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def as_json(content: object) -> str:
    """JSON as the Hugging Face folders have it."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file of the folder."""
    with path.open("wb") as file:
        file.write(text.encode("utf-8"))
        make_durable(file)


def make_durable(file: object) -> None:
    """The content before the folder's name."""
    file.flush()
    os.fsync(file.fileno())


def print_summary(model: GgufModel, out: Path, dtype: str) -> None:
    """Print what was made of what."""
    config = model.config
    parameters = sum(int(np.prod(source.shape)) for source in model.sources.values())
    kinds = ", ".join(f"{n} in {kind}" for kind, n in sorted(model.quantizations().items()))
    print(f"model: {config['model_type']}, {config['num_hidden_layers']} layers, "
          f"{parameters} parameters")  # fmt: skip
    print(f"tensors of the file: {kinds}")
    print(f"{out}: {dtype}")


if __name__ == "__main__":
    sys.exit(run_tool("import_gguf.py", main))
