#!/usr/bin/env python3
"""Config.json against transformers: random changes of real configurations, on tiny models.

Every case takes the configuration of a family as its makers publish it (sizes made small), changes one to
three things in it (fields moved into another dictionary, taken away, null, of another family, beside each
other), lets transformers say which tensors the model has, fills them at random, and evaluates the same tokens
by transformers and by `mudman-mpi eval`. The losses agree, or the program refuses the model with exit 2.
In a third of the cases the tensors are stored in an odd way too (a tied pair twice, names without prefix, tensors
that nothing needs); then `mudman-mpi run` unlearns the model, and transformers must find in the exported folder
the loss that the program found.

    random_configs.py --binary build/mudman-mpi --cases 300 --out tests/golden/random_configs.txt

It needs PyTorch, transformers, h5py and numpy. Exit 1 where any case differs, 77 where transformers is missing.
"""

from __future__ import annotations

import argparse
import collections
import copy
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

VOCAB, CONTEXT, ROWS = 53, 12, 4
TOLERANCE = 3e-5  # of the loss; its 7 printed digits, and float32 on both sides

Config = dict[str, object]
SMALL: Config = {
    "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": VOCAB, "max_position_embeddings": 128,
}  # fmt: skip
LLAMA3: Config = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip

# What the published configurations hold beside sizes. A new family is a row here, and one in UNUSED.
FAMILIES: dict[str, list[Config]] = {
    "llama": [
        {"hidden_act": "silu", "rms_norm_eps": 1e-5, "num_key_value_heads": 4, "pretraining_tp": 1,
         "rope_scaling": None, "tie_word_embeddings": False},
        {"hidden_act": "silu", "rms_norm_eps": 1e-5, "num_key_value_heads": 2, "rope_theta": 500000.0,
         "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "tie_word_embeddings": True,
         "rope_scaling": LLAMA3 | {"rope_type": "llama3"}, "head_dim": 8},
        {"hidden_act": "silu", "rms_norm_eps": 1e-5, "num_key_value_heads": 1, "tie_word_embeddings": True,
         "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "head_dim": None},
    ],
    "mistral": [
        {"hidden_act": "silu", "rms_norm_eps": 1e-5, "num_key_value_heads": 2, "rope_theta": 10000.0,
         "sliding_window": 4096, "tie_word_embeddings": False},
        {"hidden_act": "silu", "rms_norm_eps": 1e-5, "num_key_value_heads": 2, "rope_theta": 1e6,
         "sliding_window": None, "head_dim": 16, "attention_dropout": 0.0},
    ],
    "qwen2": [
        {"hidden_act": "silu", "rms_norm_eps": 1e-6, "num_key_value_heads": 2, "rope_theta": 1e6,
         "sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 21,
         "tie_word_embeddings": True, "attention_dropout": 0.0},
        {"hidden_act": "silu", "rms_norm_eps": 1e-6, "num_key_value_heads": 2, "use_sliding_window": False,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "sliding_window": None,
         "layer_types": ["full_attention", "full_attention"], "tie_word_embeddings": False},
    ],
    "qwen3": [
        {"hidden_act": "silu", "rms_norm_eps": 1e-6, "num_key_value_heads": 2, "head_dim": 8, "rope_theta": 1e6,
         "sliding_window": None, "use_sliding_window": False, "max_window_layers": 28, "attention_bias": False,
         "rope_scaling": None, "tie_word_embeddings": True, "attention_dropout": 0.0},
        {"hidden_act": "silu", "rms_norm_eps": 1e-6, "num_key_value_heads": 4, "head_dim": 16,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "sliding_window": None,
         "layer_types": ["full_attention", "full_attention"], "tie_word_embeddings": False},
    ],
    "olmo2": [
        {"hidden_act": "silu", "rms_norm_eps": 1e-6, "num_key_value_heads": 2, "rope_theta": 500000,
         "rope_scaling": None, "attention_bias": False, "tie_word_embeddings": False, "attention_dropout": 0.0},
        {"hidden_act": "silu", "rms_norm_eps": 1e-5, "num_key_value_heads": 4,
         "rope_parameters": {"rope_type": "default", "rope_theta": 500000}, "tie_word_embeddings": False},
    ],
    "gpt_neox": [
        {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "rotary_emb_base": 10000, "rotary_pct": 0.25,
         "use_parallel_residual": True, "tie_word_embeddings": False},
        {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "use_parallel_residual": False,
         "rope_parameters": {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.5}},
    ],
}  # fmt: skip

# Fields that decide something in one family or another, and values that they may have.
FIELDS: dict[str, list[object]] = {
    "attention_bias": [True, False], "mlp_bias": [True, False], "head_dim": [4, 8, 16, None],
    "num_key_value_heads": [1, 2, 4, None], "sliding_window": [None, 5, 12, 4096, 0],
    "use_sliding_window": [True, False], "max_window_layers": [0, 1, 2, 28], "tie_word_embeddings": [True, False],
    "layer_types": [None, ["full_attention"] * 2, ["full_attention", "sliding_attention"],
                    ["sliding_attention"] * 2, ["full_attention"], ["chunked_attention"] * 2],
    "rope_theta": [10000.0, 500000.0, 5000, None], "rotary_emb_base": [10000, 25000],
    "rotary_pct": [0.25, 0.5, 1.0], "partial_rotary_factor": [0.5, 1.0],
    "original_max_position_embeddings": [8, 64], "hidden_act": ["silu", "gelu", "swish", "relu", "gelu_new"],
    "rms_norm_eps": [1e-6, 0.1], "layer_norm_eps": [1e-5, 0.1], "use_parallel_residual": [True, False],
    "max_position_embeddings": [16, 64],
}  # fmt: skip
# Fields that decide nothing here.
UNUSED: dict[str, list[object]] = {
    "attention_dropout": [0.0, 0.1, 0], "hidden_dropout": [0.0, 0.1], "use_cache": [True, False],
    "initializer_range": [0.02, 0.5], "pretraining_tp": [1, 2], "bos_token_id": [1, None], "pad_token_id": [0, None],
    "eos_token_id": [2, [1, 2], None], "torch_dtype": ["float32"], "dtype": ["float32"], "note": [float("inf"), "x"],
    "auto_map": [{"AutoModel": "modeling.X"}], "quantization_config": [None], "classifier_dropout": [0.1],
}  # fmt: skip
ROPE: dict[str, list[object]] = {
    "rope_type": ["default", "llama3", "linear", "yarn", None], "type": ["default", "llama3", "linear", "mrope"],
    "rope_theta": [10000.0, 500000.0, None], "partial_rotary_factor": [0.25, 0.5, 1.0],
    "factor": [1.0, 8.0], "low_freq_factor": [1.0], "high_freq_factor": [4.0],
    "original_max_position_embeddings": [8, 64], "full_attention": [{"rope_type": "default"}],
    "rotary_pct": [0.5],
}  # fmt: skip
BOTH = ("rope_scaling", "rope_parameters")


def dictionary(config: Config, dice: random.Random) -> Config:
    """One of the rope dictionaries, made where there is none."""
    there = [name for name in BOTH if config.get(name)]
    name = dice.choice(there or BOTH)
    config[name] = dict(config.get(name) or {})
    return config[name]


def set_field(config: Config, dice: random.Random) -> None:
    name = dice.choice(list(FIELDS))
    config[name] = dice.choice(FIELDS[name])


def set_unused(config: Config, dice: random.Random) -> None:
    name = dice.choice(list(UNUSED))
    config[name] = dice.choice(UNUSED[name])


def drop_field(config: Config, dice: random.Random) -> None:
    del config[dice.choice([name for name in config if name not in SMALL and name != "model_type"])]


def null_field(config: Config, dice: random.Random) -> None:
    config[dice.choice([name for name in config if name != "model_type"])] = None


def set_rope(config: Config, dice: random.Random) -> None:
    name = dice.choice(list(ROPE))
    dictionary(config, dice)[name] = dice.choice(ROPE[name])


def make_llama3(config: Config, dice: random.Random) -> None:
    rope = dictionary(config, dice)
    rope |= LLAMA3 | {dice.choice(["rope_type", "type"]): "llama3"}
    if dice.random() < 0.5:
        del rope[dice.choice(list(LLAMA3))]


def rename_rope(config: Config, dice: random.Random) -> None:
    for old, new in (BOTH, BOTH[::-1]):
        if config.get(old):
            config[new] = config.pop(old)
            return
    config[dice.choice(BOTH)] = {"rope_type": "default"}


def copy_rope(config: Config, dice: random.Random) -> None:
    """Both dictionaries, the same or not."""
    config[BOTH[0]] = copy.deepcopy(dictionary(config, dice))
    config[BOTH[1]] = copy.deepcopy(config[BOTH[0]])
    if dice.random() < 0.5:
        set_rope(config, dice)


def empty_rope(config: Config, dice: random.Random) -> None:
    config[dice.choice(BOTH)] = dice.choice([{}, None])


def move_rope(config: Config, dice: random.Random) -> None:
    """A field of the top level into the dictionary, or out of it."""
    rope, theta = dictionary(config, dice), dice.choice(["rope_theta", "rotary_emb_base"])
    if "rope_theta" in rope:
        config[theta] = rope.pop("rope_theta")
    else:
        rope["rope_theta"] = config.pop(theta, 20000.0)


CHANGES: list[Callable[[Config, random.Random], None]] = [
    set_field, set_unused, drop_field, null_field, set_rope, make_llama3, rename_rope, copy_rope,
    empty_rope, move_rope,
]  # fmt: skip


Tensors = dict[str, "torch.Tensor"]  # noqa: F821 (imported where it is needed)


def names_of_pair(weights: Tensors) -> tuple[str, str]:
    embed = next(name for name in weights if "embed_" in name and "out" not in name)
    return embed, "embed_out.weight" if "gpt_neox" in embed else "lm_head.weight"


def store_head(weights: Tensors) -> None:
    """The head, too, whether tied or not; not the embedding's values."""
    embed, head = names_of_pair(weights)
    weights.setdefault(head, weights[embed].flip(0).contiguous())


def store_head_alike(weights: Tensors) -> None:
    embed, head = names_of_pair(weights)
    weights[head] = weights[embed].clone()


def store_head_alone(weights: Tensors) -> None:
    embed, head = names_of_pair(weights)
    weights[head] = weights.pop(embed)


def store_other_head_name(weights: Tensors) -> None:
    store_head(weights)
    weights["lm_head.weight"] = weights.pop(names_of_pair(weights)[1])


def store_without_prefix(weights: Tensors) -> None:
    for name in list(weights):
        weights[name.removeprefix("model.").removeprefix("gpt_neox.")] = weights.pop(name)


def store_more(weights: Tensors) -> None:
    """A layer too many, old buffers, biases that no family has."""
    for name in [name for name in weights if "layers.1." in name]:
        weights[name.replace("layers.1.", "layers.2.")] = weights[name].clone()
    layer = next(name for name in weights if "layers.0." in name).split("layers.0.")[0] + "layers.0."
    embed = weights[names_of_pair(weights)[0]]
    for name in ("attention.rotary_emb.inv_freq", "attention.masked_bias", "mlp.other.bias"):
        weights[layer + name] = embed[0].clone()


STORED: list[Callable[[Tensors], None]] = [
    store_head, store_head_alike, store_head_alone, store_other_head_name, store_without_prefix, store_more,
]  # fmt: skip


class Bench:
    """Both programs on the same tokens."""

    def __init__(self, binary: Path, folder: Path):
        import h5py
        import numpy as np

        self.binary, self.folder = binary, folder
        self.tokens = np.random.default_rng(5).integers(0, VOCAB, (ROWS, CONTEXT))
        with h5py.File(folder / "tokens.h5", "w") as file:
            file["tokens"] = self.tokens.astype("<u4")
            file.attrs["vocab_size"] = np.uint32(VOCAB)
            file.attrs["tokenizer"], file.attrs["source"] = "none", "random"
        files = ("retain", "forget", "retain_validation", "forget_validation")
        sizes = {"batch_size": ROWS, "micro_batch": ROWS, "context_length": CONTEXT}
        job = {
            "model": {"path": str(folder / "model"), "dtype": "float32"},
            "data": dict.fromkeys(files, str(folder / "tokens.h5")) | sizes,
            "unlearn": {"loops": 2, "unlearning_rate": 0.05, "retaining_rate": 0.01, "adv_lr": 0.01},
            "relearn": {"passes": 0}, "output": {"dir": str(folder / "run")},
        }  # fmt: skip
        (folder / "config.yaml").write_text(json.dumps(job))

    def make(self, config: Config, seed: int, store: Callable[[Tensors], None] | None = None) -> str:
        """The model folder; why transformers cannot make one, or ""."""
        import torch
        from safetensors.torch import save_file
        from transformers import AutoConfig, AutoModelForCausalLM

        model = self.folder / "model"
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text(json.dumps(config, indent=1))
        try:
            with torch.device("meta"):
                empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
            shapes = {name: value.shape for name, value in empty.state_dict().items()}
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        if config.get("tie_word_embeddings"):
            shapes.pop("lm_head.weight", None)
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for name, shape in shapes.items():
            values = torch.randn(shape, generator=generator)
            scale, shift = (1.5 / shape[-1] ** 0.5, 0.0) if len(shape) > 1 else (0.2, 1.0)
            stored = "embed_out.weight" if name == "lm_head.weight" and "neox" in config["model_type"] else name
            weights[stored] = values * scale + shift * name.endswith("weight")
        if store:
            store(weights)
        save_file(weights, model / "model.safetensors", {"format": "pt"})
        return ""

    def theirs(self, folder: str = "model") -> float | str:
        import torch
        from transformers import AutoModelForCausalLM

        try:
            model = AutoModelForCausalLM.from_pretrained(
                self.folder / folder, dtype=torch.float32, attn_implementation="eager"
            )
            ids = torch.from_numpy(self.tokens)
            with torch.no_grad():
                logits = model(ids).logits.double()
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            return float(loss)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def mudman(self, *arguments: object) -> subprocess.CompletedProcess:
        alone = {"OMP_NUM_THREADS": "1", "OMPI_MCA_ess_singleton_isolated": "1"}
        for _ in range(3):  # on a busy machine Open MPI itself may fail to start, with exit 1
            run = subprocess.run(
                [self.binary, *arguments], capture_output=True, text=True, timeout=60,
                env=os.environ | alone, check=False,
            )  # fmt: skip
            if run.returncode != 1:
                break
        assert run.returncode in (0, 2), run.stderr
        return run

    def ours(self) -> float | str:
        run = self.mudman("eval", self.folder / "config.yaml")
        return run.stderr.strip() if run.returncode else float(run.stdout.split("retain loss")[1].split()[0])

    def exported(self, config: Config) -> tuple[float, float | str]:
        """The retain loss after unlearning: what the program says, and what transformers finds in the folder."""
        module = "dense_h_to_4h" if config["model_type"] == "gpt_neox" else "gate_proj"
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        run = self.mudman("run", self.folder / "config.yaml", f"unlearn.target_modules=[{module}]")
        assert run.returncode == 0, run.stderr
        said = next(line for line in (run.stdout + run.stderr).splitlines() if line.startswith("after unlearning"))
        return float(said.split()[-1]), self.theirs("run/model")


def alike(ours: float, theirs: float | str) -> bool:
    if not isinstance(theirs, float):
        return False
    return (ours != ours and theirs != theirs) or abs(ours - theirs) < TOLERANCE * theirs


def outcome(
    bench: Bench, base: Config, config: Config, seed: int, store: Callable[[Tensors], None] | None
) -> tuple[str, str]:
    """What came of one configuration, and both answers."""
    refused = bench.make(config, seed, store)
    if refused:  # the weights of the unchanged model then, so that only the change can be at fault
        assert not bench.make(base, seed)
        (bench.folder / "model" / "config.json").write_text(json.dumps(config))
    theirs = refused or bench.theirs()
    ours = bench.ours()
    said = f"ours {ours}, transformers {str(theirs)[:200]}"
    if isinstance(ours, str):
        return "both refused" if isinstance(theirs, str) else "refused by us", said
    if isinstance(theirs, str):
        return "refused by transformers alone", said
    if not alike(ours, theirs):
        return "DIFFERENT", said
    if not store:
        return "agreed", said
    ours, theirs = bench.exported(config)
    return "agreed" if alike(ours, theirs) else "DIFFERENT", f"exported: ours {ours}, transformers {theirs}"


OUTCOMES = ["agreed", "refused by us", "both refused", "refused by transformers alone", "DIFFERENT"]


def table(counts: collections.Counter, rows: list[str], title: str) -> list[str]:
    wide = max(map(len, [title, *rows]))
    lines = [f"{title:{wide}}  " + "  ".join(OUTCOMES)]
    for row in rows:
        cells = [f"{counts[row, name]:{len(name)}}" for name in OUTCOMES]
        lines.append(f"{row:{wide}}  " + "  ".join(cells))
    return lines


def main() -> int:
    if not all(map(importlib.util.find_spec, ("torch", "transformers", "h5py"))):
        print("skipped: torch, transformers or h5py is not installed here")
        return 77
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=300, help="of each family")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--out", type=Path, help="where the table goes")
    parser.add_argument("--log", type=Path, help="where every case goes, a line each")
    arguments = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    families: collections.Counter = collections.Counter()
    kinds: collections.Counter = collections.Counter()
    log = arguments.log.open("w") if arguments.log else None
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(arguments.binary.resolve(), Path(scratch))
        for family in arguments.families:
            for case in range(arguments.cases):
                dice = random.Random(f"{arguments.seed} {family} {case}")
                base = {"model_type": family} | SMALL | dice.choice(FAMILIES[family])
                config = copy.deepcopy(base)
                changes = dice.choices(CHANGES, k=dice.choice([1, 1, 2, 3]))
                for change in changes:
                    change(config, dice)
                store = dice.choice(STORED) if dice.random() < 0.33 else None
                got, said = outcome(bench, base, config, case, store)
                families[family, got] += 1
                changes += [store] if store else []
                for name in {change.__name__ for change in changes}:
                    kinds[name, got] += 1
                if log or got == "DIFFERENT":
                    line = f"{got}: {family} {case} {[c.__name__ for c in changes]} {json.dumps(config)}: {said}"
                    print(line.replace("\n", " "), file=log or sys.stdout, flush=True)
    lines = [
        f"transformers {transformers.__version__}, seed {arguments.seed}, {arguments.cases} configurations a family;",
        "made by tests/golden/random_configs.py. A configuration with several changes counts for each of them.", "",
        *table(families, arguments.families, "family"), "",
        *table(kinds, [change.__name__ for change in CHANGES + STORED], "change"),
    ]  # fmt: skip
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")
    return 1 if any(count for (_, name), count in families.items() if name == "DIFFERENT") else 0


if __name__ == "__main__":
    sys.exit(main())
