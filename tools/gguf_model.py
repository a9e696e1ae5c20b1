"""The model of a GGUF file in the Hugging Face layout: config.json, and tensors by their names.

llama.cpp rotates neighbouring pairs where Hugging Face rotates halves of a head. In its
architecture "llama" (which Mistral shares) it therefore stores the rows of q and k in another
order, which is undone here; in the others it doesn't.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gguf_file import GgufFile, shown

PERMUTED = ("llama", "mistral")
ARCHITECTURES = (*PERMUTED, "qwen2", "qwen3", "olmo2")
QK_NORMS = ("qwen3", "olmo2")  # have norms of q and k
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
}
# Settings of the architecture that are read below, or say nothing about the arithmetic.
READ = {
    "block_count",
    "embedding_length",
    "feed_forward_length",
    "context_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
}
# Those that must have these values, or be absent: others would be another arithmetic.
NEUTRAL = {
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
    "rope.scale_linear": 1.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "use_parallel_residual": False,
    "attention.causal": True,
    "tensor_data_layout": "Meta AI original pth",
}
ROTATION = "rope_freqs.weight"
# The llama3 scaling of the rotation as Llama 3.1 and 3.2 have it; its factor differs.
LOW, HIGH, ORIGINAL = 1.0, 4.0, 8192


@dataclass(frozen=True)
class Source:
    """A tensor to make: from which of the file's, in which shape, and the heads to put in order."""

    name: str
    shape: tuple[int, ...]
    heads: int = 0


class GgufModel:
    """What is made of a file; its shapes and settings are checked when this is made."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self._architecture = file.setting("general.architecture", str)
        if self._architecture not in ARCHITECTURES:
            raise file.fault(
                f"architecture '{self._architecture}' is not supported: {', '.join(ARCHITECTURES)}"
            )
        if file.setting("split.count", int, 0) > 1:
            raise file.fault("one part of a model in several files: merge them (llama-gguf-split)")
        self._check_settings()
        self.config = self._config()
        self.sources = self._sources()
        self._check_tensors()

    @property
    def family(self) -> str:
        """Mistral comes in the architecture "llama", and only its name tells."""
        names = (str(self.file.settings.get(f"general.{key}", "")) for key in ("basename", "name"))
        is_mistral = self._architecture == "llama" and any("mistral" in n.lower() for n in names)
        return "mistral" if is_mistral else self._architecture

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (Hugging Face name, float32 values), one at a time."""
        for name, source in self.sources.items():
            values = self.file.values(source.name)
            yield name, halves_of_heads(values, source.heads) if source.heads else values

    def quantizations(self) -> dict[str, int]:
        """How many tensors are stored in which way."""
        counts: dict[str, int] = {}
        for source in self.sources.values():
            kind = self.file.tensors[source.name].kind.name
            counts[kind] = counts.get(kind, 0) + 1
        return counts

    def _own(self, name: str) -> str:
        return f"{self._architecture}.{name}"

    def _count(self, name: str, default: int | None = None) -> int:
        count = self.file.setting(self._own(name), int, default)
        if count < 1:
            raise self.file.fault(f"the setting {self._own(name)} is {count}")
        return count

    def _decimal(self, name: str, default: float | None = None) -> float:
        return decimal(self.file.setting(self._own(name), float, default))

    def _check_settings(self) -> None:
        prefix = self._own("")
        known = READ | {"attention.sliding_window"} if self.family == "mistral" else READ
        for key, value in self.file.settings.items():
            name = key.removeprefix(prefix)
            if not key.startswith(prefix) or name in known:
                continue
            if name not in NEUTRAL or value != NEUTRAL[name]:
                raise self.file.fault(
                    f"the setting {key} is {shown(value)}, which is not supported"
                )

    def _config(self) -> dict[str, Any]:
        file, count = self.file, self._count
        heads, width = count("attention.head_count"), count("embedding_length")
        head_dim = count("attention.key_length", width // heads)
        if head_dim % 2:
            raise file.fault(f"heads of odd size {head_dim}")
        if count("block_count") > len(file.tensors):
            raise file.fault(f"the setting {self._own('block_count')} is more than its tensors")
        for name in ("attention.value_length", "rope.dimension_count"):
            if count(name, head_dim) != head_dim:
                raise file.fault(f"the setting {self._own(name)} is not the size of a head")
        config = {
            "architectures": [CLASSES[self.family]],
            "model_type": self.family,
            "vocab_size": self._rows("token_embd.weight"),
            "hidden_size": width,
            "intermediate_size": count("feed_forward_length"),
            "num_hidden_layers": count("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": count("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": count("context_length"),
            "rms_norm_eps": self._decimal("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._decimal("rope.freq_base", 10000.0),
            "tie_word_embeddings": "output.weight" not in file.tensors,
        }
        config |= self._family_settings()
        for name in ("bos", "eos"):
            token = file.settings.get(f"tokenizer.ggml.{name}_token_id")
            config |= {} if token is None else {f"{name}_token_id": token}
        if ROTATION in file.tensors:
            config["rope_scaling"] = self._rope_scaling(config)
        return config

    def _family_settings(self) -> dict[str, Any]:
        if self.family == "mistral":
            window = self.file.settings.get(self._own("attention.sliding_window"))
            return {"sliding_window": window or None}
        if self.family == "qwen2":
            return {"use_sliding_window": False}
        attention_bias = {"attention_bias": "blk.0.attn_q.bias" in self.file.tensors}
        if self.family == "qwen3":
            return attention_bias | {"use_sliding_window": False}
        if self.family == "olmo2":
            return attention_bias
        return attention_bias | {"mlp_bias": "blk.0.ffn_up.bias" in self.file.tensors}

    def _rows(self, name: str) -> int:
        if name not in self.file.tensors:
            raise self.file.fault(f"tensor {name} is missing")
        return self.file.tensors[name].shape[0]

    def _rope_scaling(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """Settings that give the file's factors; None where they change nothing."""
        factors = self.file.values(ROTATION)
        factor, d = decimal(float(factors.max())), config["head_dim"]
        if factors.shape != (d // 2,) or not np.allclose(
            factors, llama3_factors(d, config["rope_theta"], factor), rtol=1e-5
        ):
            raise self.file.fault(
                f"tensor {ROTATION} is not the llama3 scaling of Llama 3.1 and 3.2, and no other is "
                "supported"
            )
        if factor == 1:
            return None
        return {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": LOW,
            "high_freq_factor": HIGH,
            "original_max_position_embeddings": ORIGINAL,
        }

    def _sources(self) -> dict[str, Source]:
        config = self.config
        width, vocab = config["hidden_size"], config["vocab_size"]
        found = {"model.embed_tokens.weight": Source("token_embd.weight", (vocab, width))}
        for i in range(config["num_hidden_layers"]):
            found |= self._layer(f"blk.{i}", f"model.layers.{i}")
        found["model.norm.weight"] = Source("output_norm.weight", (width,))
        if not config["tie_word_embeddings"]:
            found["lm_head.weight"] = Source("output.weight", (vocab, width))
        return found

    def _layer(self, theirs: str, ours: str) -> dict[str, Source]:
        config = self.config
        width, mlp, d = config["hidden_size"], config["intermediate_size"], config["head_dim"]
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        o_bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
        qkv_bias = o_bias or self.family == "qwen2"
        found = {
            f"{ours}.{name}.weight": Source(f"{theirs}.{stored}.weight", (width,))
            for name, stored in self._layer_norms()
        }
        if self.family in QK_NORMS:
            q, k = (d, d) if self.family == "qwen3" else (heads * d, kv_heads * d)
            found[f"{ours}.self_attn.q_norm.weight"] = Source(f"{theirs}.attn_q_norm.weight", (q,))
            found[f"{ours}.self_attn.k_norm.weight"] = Source(f"{theirs}.attn_k_norm.weight", (k,))
        for name, rows, columns, part, pairs, bias in (
            ("attn_q", heads * d, width, "self_attn.q_proj", heads, qkv_bias),
            ("attn_k", kv_heads * d, width, "self_attn.k_proj", kv_heads, qkv_bias),
            ("attn_v", kv_heads * d, width, "self_attn.v_proj", 0, qkv_bias),
            ("attn_output", width, heads * d, "self_attn.o_proj", 0, o_bias),
            ("ffn_gate", mlp, width, "mlp.gate_proj", 0, mlp_bias),
            ("ffn_up", mlp, width, "mlp.up_proj", 0, mlp_bias),
            ("ffn_down", width, mlp, "mlp.down_proj", 0, mlp_bias),
        ):
            n = pairs if self._architecture in PERMUTED else 0
            found[f"{ours}.{part}.weight"] = Source(f"{theirs}.{name}.weight", (rows, columns), n)
            if bias:
                found[f"{ours}.{part}.bias"] = Source(f"{theirs}.{name}.bias", (rows,), n)
        return found

    def _layer_norms(self) -> tuple[tuple[str, str], ...]:
        """Of the residual stream: our names, theirs."""
        if self.family == "olmo2":
            return (
                ("post_attention_layernorm", "post_attention_norm"),
                ("post_feedforward_layernorm", "post_ffw_norm"),
            )
        return ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")

    def _check_tensors(self) -> None:
        for source in self.sources.values():
            if source.name not in self.file.tensors:
                raise self.file.fault(f"tensor {source.name} is missing")
            shape = self.file.tensors[source.name].shape
            if shape != source.shape:
                raise self.file.fault(f"tensor {source.name} is {shape}, not {source.shape}")
        others = self.file.tensors.keys() - {source.name for source in self.sources.values()}
        others -= {ROTATION}
        if others:
            raise self.file.fault(f"tensor {min(others)} is not one of this architecture")


def halves_of_heads(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from neighbouring pairs to halves."""
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def llama3_factors(head_dim: int, theta: float, factor: float) -> np.ndarray:
    """What the llama3 scaling divides each frequency by."""
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = ORIGINAL * frequencies / (2 * np.pi)  # within the original context
    smooth = np.clip((turns - LOW) / (HIGH - LOW), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def decimal(value: float) -> float:
    """A float32 as the shortest decimal that means it: 1e-05 rather than 9.99999974e-06."""
    return float(str(np.float32(value)))
