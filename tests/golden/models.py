"""The tiny model cases: their configuration, their tensors and their random weights.

Each case is a complete Hugging Face folder. The weights come from numpy's seeded generator alone, so that
they do not depend on the version of PyTorch or transformers.
"""
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


@dataclass(frozen=True)
class Case:
    name: str
    config: dict
    context: int
    weight_seed: int
    token_seed: int
    tied: bool

    @property
    def vocab(self) -> int:
        return self.config["vocab_size"]


# The transformers 4 form: rope_theta, rope_scaling and torch_dtype.
LLAMA_GQA_TIED = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 22,
    "max_position_embeddings": 64,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "transformers_version": "4.46.3",
    "use_cache": True,
    "vocab_size": 53,
}

# The transformers 5 form. The head size is not hidden / heads, and there is a single key/value head. The four
# inverse frequencies have wavelengths 6.3, 29.7, 140 and 664: below 32 / 4 (kept), between 32 / 4 and 32 / 1
# (interpolated), and twice above 32 / 1 (divided by the factor).
LLAMA3_UNTIED = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "float32",
    "eos_token_id": [2, 3],
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 18,
    "max_position_embeddings": 64,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 32,
        "rope_theta": 500.0,
        "rope_type": "llama3",
    },
    "tie_word_embeddings": False,
    "transformers_version": "5.0.0",
    "use_cache": True,
    "vocab_size": 47,
}

QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
    "max_window_layers": 2,
    "model_type": "qwen2",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "transformers_version": "4.46.3",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 53,
}

# The head size is not hidden / heads; q and k are normalized head by head. The transformers 5 form.
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "float32",
    "eos_token_id": 2,
    "head_dim": 6,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 20,
    "layer_types": ["full_attention", "full_attention"],
    "max_position_embeddings": 64,
    "max_window_layers": 2,
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "sliding_window": None,
    "tie_word_embeddings": True,
    "transformers_version": "5.0.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 53,
}

# Norms after attention and MLP; q and k are normalized over all heads together. The transformers 4 form.
OLMO2 = {
    "architectures": ["Olmo2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
    "model_type": "olmo2",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 3,  # PyTorch forms no gradient of its row of the embedding
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.47.0",
    "use_cache": True,
    "vocab_size": 47,
}

# Head size 8 of which a quarter, 2, is rotated.
NEOX_PARALLEL = {
    "architectures": ["GPTNeoXForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_dropout": 0.0,
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 26,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 64,
    "model_type": "gpt_neox",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "rope_scaling": None,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.46.3",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 53,
}

# The transformers 5 form; head size 8 of which half, 4, is rotated.
NEOX_SERIAL = {
    "architectures": ["GPTNeoXForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dtype": "float32",
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_dropout": 0.0,
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 24,
    "is_decoder": True,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 64,
    "model_type": "gpt_neox",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 100.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "transformers_version": "5.0.0",
    "use_cache": True,
    "use_parallel_residual": False,
    "vocab_size": 41,
}

CASES = {
    case.name: case
    for case in (
        Case("llama-gqa-tied", LLAMA_GQA_TIED, context=12, weight_seed=101, token_seed=12, tied=True),
        Case("llama3-untied", LLAMA3_UNTIED, context=11, weight_seed=102, token_seed=0, tied=False),
        Case("qwen2", QWEN2, context=11, weight_seed=107, token_seed=0, tied=True),
        Case("qwen3", QWEN3, context=11, weight_seed=108, token_seed=0, tied=True),
        Case("olmo2", OLMO2, context=11, weight_seed=109, token_seed=0, tied=False),
        Case("neox-parallel", NEOX_PARALLEL, context=12, weight_seed=104, token_seed=0, tied=False),
        Case("neox-serial", NEOX_SERIAL, context=11, weight_seed=105, token_seed=0, tied=False),
    )
}


def llama_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of Llama and what grew out of it: Qwen2 has biases on q, k and v, Qwen3 and OLMo-2
    norms of q and k, OLMo-2 its other norms behind attention and MLP."""
    kind = config["model_type"]
    hidden, mlp, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = config.get("head_dim", hidden // config["num_attention_heads"])
    rows = {
        "q_proj": config["num_attention_heads"] * head,
        "k_proj": config["num_key_value_heads"] * head,
        "v_proj": config["num_key_value_heads"] * head,
    }
    shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name, n in rows.items():
            shapes[f"{at}.self_attn.{name}.weight"] = (n, hidden)
            if kind == "qwen2":
                shapes[f"{at}.self_attn.{name}.bias"] = (n,)
        shapes[f"{at}.self_attn.o_proj.weight"] = (hidden, rows["q_proj"])
        shapes[f"{at}.mlp.gate_proj.weight"] = (mlp, hidden)
        shapes[f"{at}.mlp.up_proj.weight"] = (mlp, hidden)
        shapes[f"{at}.mlp.down_proj.weight"] = (hidden, mlp)
        if kind in ("qwen3", "olmo2"):
            shapes[f"{at}.self_attn.q_norm.weight"] = (head if kind == "qwen3" else rows["q_proj"],)
            shapes[f"{at}.self_attn.k_norm.weight"] = (head if kind == "qwen3" else rows["k_proj"],)
        if kind != "olmo2":
            shapes[f"{at}.input_layernorm.weight"] = (hidden,)
        shapes[f"{at}.post_attention_layernorm.weight"] = (hidden,)
        if kind == "olmo2":
            shapes[f"{at}.post_feedforward_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def neox_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    hidden, mlp, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    layer_shapes = {
        "input_layernorm.weight": (hidden,),
        "input_layernorm.bias": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "post_attention_layernorm.bias": (hidden,),
        "attention.query_key_value.weight": (3 * hidden, hidden),
        "attention.query_key_value.bias": (3 * hidden,),
        "attention.dense.weight": (hidden, hidden),
        "attention.dense.bias": (hidden,),
        "mlp.dense_h_to_4h.weight": (mlp, hidden),
        "mlp.dense_h_to_4h.bias": (mlp,),
        "mlp.dense_4h_to_h.weight": (hidden, mlp),
        "mlp.dense_4h_to_h.bias": (hidden,),
    }
    shapes = {"gpt_neox.embed_in.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"gpt_neox.layers.{layer}.{name}": shape for name, shape in layer_shapes.items()}
    shapes["gpt_neox.final_layer_norm.weight"] = (hidden,)
    shapes["gpt_neox.final_layer_norm.bias"] = (hidden,)
    shapes["embed_out.weight"] = (vocab, hidden)
    return shapes


def tensor_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    make = neox_shapes if case.config["model_type"] == "gpt_neox" else llama_shapes
    return make(case.config)


def random_weights(case: Case) -> dict[str, np.ndarray]:
    """Weights large enough that logits are far from flat and every gradient is well away from rounding."""
    rng = np.random.default_rng(case.weight_seed)
    weights = {}
    for name, shape in tensor_shapes(case).items():
        noise = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            value = 1 + 0.1 * noise
        elif name.endswith("bias"):
            value = 0.1 * noise
        else:
            value = 0.3 * noise
        weights[name] = value.astype(np.float32)
    return weights


def write_model(case: Case, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(case.config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    save_file(random_weights(case), folder / "model.safetensors", metadata={"format": "pt"})


def token_rows(case: Case, seed: int, stream: int, rows: int) -> np.ndarray:
    """Random token rows; `stream` tells the sets of one case apart."""
    rng = np.random.default_rng([seed, stream])
    return rng.integers(0, case.vocab, size=(rows, case.context), dtype=np.uint32)
