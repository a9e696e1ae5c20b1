"""Tiny GGUF files, made as llama.cpp's converter makes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from model_helpers import GOLDEN, floats_of

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OLMO2_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
WORDS = ["the", "cat", "sat", "on", "a", "mat", " the", " cat", "tt", "1", "2", "12", "\n\n"]
CONTROL, USER_DEFINED, UNUSED, BYTE = 3, 4, 5, 6


def gguf_name(name: str, architecture: str) -> str:
    """A Hugging Face name as llama.cpp has it."""
    names = NAMES | (OLMO2_NAMES if architecture == "olmo2" else {})
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("model.layers."):
        return f"{names[stem]}.{kind}"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{names[part]}.{kind}"


def neighbours(values: np.ndarray, heads: int) -> np.ndarray:
    """The rows of each head in the order 0, d/2, 1, d/2 + 1, ...: rotations of neighbours."""
    d = len(values) // heads
    order = [head * d + i + half * d // 2 for head in range(heads) for i in range(d // 2)
             for half in (0, 1)]  # fmt: skip
    return values[order]


def settings_of(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    settings = {
        "block_count": config["num_hidden_layers"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "context_length": config["max_position_embeddings"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": float(
            config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        ),
    }
    if "head_dim" in config:
        settings |= {"rope.dimension_count": config["head_dim"]}
        settings |= {f"attention.{what}_length": config["head_dim"] for what in ("key", "value")}
    return {f"{architecture}.{name}": value for name, value in settings.items()}


def byte_level_tokens(extra: Sequence[tuple[str, int]] = ()) -> dict[str, Any]:
    """A byte-level vocabulary of WORDS, merged from the left, a space last; then `extra`."""
    letters = {ord(c): c for c in "[PAD]" + "".join(WORDS)} | {10: "\u010a", 32: "\u0120"}
    tokens, merges = list(letters.values()), []
    for word in WORDS:
        spelled = [letters[ord(c)] for c in word.lstrip(" ")]
        if word.startswith(" "):
            spelled[:0] = [letters[32]]
            spelled[1:] = ["".join(spelled[1:])]
        for end in range(2, len(spelled) + 1):
            left, right = "".join(spelled[: end - 1]), spelled[end - 1]
            if left + right not in tokens:
                tokens.append(left + right)
                merges.append(f"{left} {right}")
    types = [1] * len(tokens) + [kind for _, kind in extra]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*tokens, *(token for token, _ in extra)],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
    }


def write_gguf(
    path: Path,
    settings: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    kind: str = "F32",
    raw: gguf.GGMLQuantizationType | None = None,
) -> Path:
    """Write a file; matrices are quantized to `kind`, and bytes are blocks of the kind `raw`."""
    writer = gguf.GGUFWriter(path, settings["general.architecture"])
    for name, value in settings.items():
        if name != "general.architecture":
            add_setting(writer, name, value)
    quantization = gguf.GGMLQuantizationType[kind]
    for name, values in tensors.items():
        if values.dtype == np.uint8:
            writer.add_tensor(name, values, raw_dtype=raw)
        elif values.ndim == 1 or kind == "F32":
            writer.add_tensor(name, values.astype(np.float32))
        elif kind == "F16":
            writer.add_tensor(name, values.astype(np.float16))
        else:
            data = gguf.quantize(values, quantization)
            writer.add_tensor(name, data, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_setting(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
           str: writer.add_string, list: writer.add_array}  # fmt: skip
    add[type(value)](name, value)


def golden_gguf(
    model: str, architecture: str
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A golden model's settings and tensors as GGUF has them, and its own tensors."""
    config = json.loads((GOLDEN / model / "config.json").read_text())
    own = floats_of(GOLDEN / model / "model.safetensors")
    tensors = {}
    for name, values in own.items():
        permuted = architecture in ("llama", "mistral")
        if permuted and ".q_proj." in name:
            values = neighbours(values, config["num_attention_heads"])
        if permuted and ".k_proj." in name:
            values = neighbours(values, config["num_key_value_heads"])
        tensors[gguf_name(name, architecture)] = values
    settings = {"general.architecture": architecture, **settings_of(config, architecture)}
    return settings | byte_level_tokens(), tensors, own
