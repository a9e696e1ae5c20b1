"""Text to token ids: any Hugging Face tokenizer.json, or the bytes of UTF-8."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from text_records import InputError


# What older models have in place of tokenizer.json: SentencePiece's, and that of GPT-2's kind.
_OTHER_TOKENIZERS = ("tokenizer.model", "spiece.model", "vocab.json")


class TextTokenizer(Protocol):
    """What the tools need of a tokenizer; `name` identifies it in the files written."""

    name: str
    vocab_size: int

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""

    def encode_from(
        self, texts: Sequence[str], begins: Sequence[int]
    ) -> list[tuple[list[int], int]]:
        """Return the ids of each text, and the first of them that reaches beyond character
        `begins`; 0 where that is 0."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return what ids say, special tokens included."""


class ByteTokenizer:
    """Every byte of the UTF-8 text is a token."""

    name = "bytes"
    vocab_size = 256

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the bytes of each text."""
        return [list(text.encode("utf-8")) for text in texts]

    def encode_from(
        self, texts: Sequence[str], begins: Sequence[int]
    ) -> list[tuple[list[int], int]]:
        """Return the bytes of each text, and where its character `begins` begins."""
        return [
            (list(text.encode("utf-8")), len(text[:begin].encode("utf-8")))
            for text, begin in zip(texts, begins, strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the bytes, which may end within a character."""
        return bytes(ids).decode("utf-8", errors="replace")


class FileTokenizer:
    """A tokenizer.json, with the special tokens that its post-processor adds, or without."""

    def __init__(self, path: Path, special_tokens: bool) -> None:
        # Imported here so that bytes need nothing beyond NumPy and h5py.
        import tokenizers

        try:
            content = path.read_bytes()
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"{path}: not a tokenizer.json that can be read: {error}") from error
        # A tokenizer.json may itself ask for truncation or padding: rows are cut by the caller,
        # never padded.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Merges left out at random are for training tokenizers' models: other rows each time.
        if getattr(self._tokenizer.model, "dropout", None) is not None:
            self._tokenizer.model.dropout = None
        self._path = path
        self._special_tokens = special_tokens
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        digest = hashlib.sha256(content).hexdigest()
        self.name = f"{path.resolve().parent.name}/{path.name} sha256:{digest}"

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        return [ids for ids, _ in self.encode_from(texts, [0] * len(texts))]

    def encode_from(
        self, texts: Sequence[str], begins: Sequence[int]
    ) -> list[tuple[list[int], int]]:
        """A token on both sides of the place is behind it."""
        try:
            encodings = self._tokenizer.encode_batch(
                list(texts), add_special_tokens=self._special_tokens
            )
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"{self._path}: cannot tokenise this text: {error}") from error
        return [
            (encoding.ids, _first_behind(encoding.offsets, begin) if begin else 0)
            for encoding, begin in zip(encodings, begins, strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Return what the tokenizer makes of them."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)


def _first_behind(offsets: Sequence[tuple[int, int]], begin: int) -> int:
    """The first token that ends behind character `begin`; their number where none does."""
    return next((i for i, (_, end) in enumerate(offsets) if end > begin), len(offsets))


def open_tokenizer(given: str, special_tokens: bool = True) -> TextTokenizer:
    """Open `bytes`, a tokenizer.json, or the folder (a model's) that holds one."""
    if given == "bytes":
        return ByteTokenizer()
    path = Path(given)
    if not path.is_dir():
        return FileTokenizer(path, special_tokens)
    if not (path / "tokenizer.json").exists():
        others = [name for name in _OTHER_TOKENIZERS if (path / name).exists()]
        raise InputError(
            f"{path}: holds no tokenizer.json"
            + (f" but {others[0]}: transformers writes one: AutoTokenizer.from_pretrained(FOLDER)"
               ".save_pretrained(FOLDER)" if others else "")
        )  # fmt: skip
    return FileTokenizer(path / "tokenizer.json", special_tokens)
