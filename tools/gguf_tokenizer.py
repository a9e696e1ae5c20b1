"""The tokenizer of a GGUF file as a tokenizer.json, and its part of tokenizer_config.json.

GGUF stores vocabulary, merges or scores, and a name for how text is cut before merging; what the
name means is written down here. Byte-level BPE is called "gpt2" there, SentencePiece's BPE "llama".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors

from gguf_file import GgufFile

# What a token is.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
SPACE = "\u2581"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


@dataclass(frozen=True)
class Cut:
    """How text is cut into words; `pattern` None is the cut of GPT-2."""

    pattern: str | None = None
    single_digits: bool = False
    nfc: bool = False
    whole_words: bool = False  # a word that is in the vocabulary is not merged from pieces
    begins: bool = False  # with a begin-of-text token, where the file does not say


CUTS = {
    "gpt-2": Cut(),
    "smollm": Cut(single_digits=True),
    "llama-bpe": Cut(rf"{CONTRACTION}|{WORD}|\p{{N}}{{1,3}}|{REST}", whole_words=True, begins=True),
    "qwen2": Cut(rf"{CONTRACTION}|{WORD}|\p{{N}}|{REST}", nfc=True),
    "tekken": Cut(
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        whole_words=True,
        begins=True,
    ),
}


class GgufTokenizer:
    """What is made of a file: `tokenizer`, `config` for tokenizer_config.json, and all `tokens`."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self.tokens = file.entries("tokenizer.ggml.tokens", str)
        self._types = file.entries("tokenizer.ggml.token_type", int, [NORMAL] * len(self.tokens))
        if len(self._types) != len(self.tokens):
            raise file.fault("tokenizer.ggml.token_type has not one entry for each token")
        self._vocab = {token: i for i, token in enumerate(self.tokens) if self._types[i] != UNUSED}
        if len(self._vocab) != len(self.tokens) - self._types.count(UNUSED):
            raise file.fault("tokenizer.ggml.tokens names a token twice")
        kind = file.setting("tokenizer.ggml.model", str)
        if kind == "gpt2":
            self.tokenizer, begins = self._byte_level()
        elif kind == "llama":
            self.tokenizer, begins = self._sentencepiece(), True
        else:
            raise file.fault(f"tokenizer.ggml.model '{kind}' is not supported: gpt2, llama")
        self._add_tokens()
        self._add_ends(begins)
        self.config = self._config()

    def _byte_level(self) -> tuple[Tokenizer, bool]:
        name = self._file.settings.get("tokenizer.ggml.pre", "(missing)")
        if name not in CUTS:
            raise self._file.fault(
                f"tokenizer.ggml.pre '{name}' is not supported: {', '.join(CUTS)}"
            )
        cut = CUTS[name]
        merges = [pair.split(" ") for pair in self._file.entries("tokenizer.ggml.merges", str)]
        for pair in merges:
            if len(pair) != 2 or not {*pair, "".join(pair)} <= self._vocab.keys():
                raise self._file.fault(f"tokenizer.ggml.merges: {' '.join(pair)!r} is not a merge")
        model = models.BPE(
            vocab=self._vocab,
            merges=[(left, right) for left, right in merges],
            ignore_merges=cut.whole_words,
        )
        tokenizer = Tokenizer(model)
        if cut.nfc:
            tokenizer.normalizer = normalizers.NFC()
        steps = [pre_tokenizers.Digits(individual_digits=True)] if cut.single_digits else []
        steps += [pre_tokenizers.Split(Regex(cut.pattern), "isolated")] if cut.pattern else []
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not cut.pattern))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer, cut.begins

    def _sentencepiece(self) -> Tokenizer:
        unknown = [t for t, kind in zip(self.tokens, self._types) if kind == UNKNOWN]
        model = models.BPE(
            vocab=self._vocab,
            merges=self._merges_of_scores(),
            unk_token=self._token("unknown") or next(iter(unknown), None),
            fuse_unk=True,
            byte_fallback=True,
        )
        tokenizer = Tokenizer(model)
        prefix = self._file.setting("tokenizer.ggml.add_space_prefix", bool, True)
        steps = [normalizers.Prepend(SPACE)] if prefix else []
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
        ends = [decoders.Strip(" ", 1, 0)] if prefix else []
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
        )
        return tokenizer

    def _merges_of_scores(self) -> list[tuple[str, str]]:
        """SentencePiece joins the pair whose whole has the highest score."""
        scores = self._file.entries("tokenizer.ggml.scores", float)
        if len(scores) != len(self.tokens):
            raise self._file.fault("tokenizer.ggml.scores has not one entry for each token")
        pieces = {
            token: i
            for i, token in enumerate(self.tokens)
            if self._types[i] in (NORMAL, USER_DEFINED)
        }
        found = []
        for whole, i in pieces.items():
            for cut in range(1, len(whole)):
                left, right = pieces.get(whole[:cut]), pieces.get(whole[cut:])
                if left is not None and right is not None:
                    found.append((-scores[i], left, right))
        return [(self.tokens[left], self.tokens[right]) for _, left, right in sorted(found)]

    def _add_tokens(self) -> None:
        """Tokens that text is searched for before it is cut."""
        for kinds, add in (
            ((UNKNOWN, CONTROL), self.tokenizer.add_special_tokens),
            ((USER_DEFINED,), self.tokenizer.add_tokens),
        ):
            special = CONTROL in kinds
            tokens = [t for t, kind in zip(self.tokens, self._types) if kind in kinds]
            add([AddedToken(token, normalized=False, special=special) for token in tokens])

    def _add_ends(self, begins: bool) -> None:
        setting = self._file.setting
        first = setting("tokenizer.ggml.add_bos_token", bool, begins) and self._token("bos")
        last = setting("tokenizer.ggml.add_eos_token", bool, False) and self._token("eos")
        if not first and not last:
            return
        before, after = ([token] if token else [] for token in (first, last))
        self.tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *before, "$B:1", *after],
            special_tokens=[(token, self._vocab[token]) for token in {*before, *after}],
        )

    def _token(self, name: str) -> str | None:
        number = self._file.settings.get(f"tokenizer.ggml.{name}_token_id")
        if number is None:
            return None
        if not 0 <= number < len(self.tokens) or self._types[number] == UNUSED:
            raise self._file.fault(f"tokenizer.ggml.{name}_token_id {number} is not a token")
        return self.tokens[number]

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        for ours, theirs in (
            ("bos", "bos"),
            ("eos", "eos"),
            ("unk", "unknown"),
            ("pad", "padding"),
        ):
            token = self._token(theirs)
            config |= {f"{ours}_token": token} if token is not None else {}
        template = self._file.settings.get("tokenizer.chat_template")
        return config | ({"chat_template": template} if template else {})
