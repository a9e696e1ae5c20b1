"""Models, token files and configurations for the tests of the program.

The golden cases (tests/golden/README.md) are complete tiny models with traces of an oracle in float64;
random models are for what needs another shape.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from job_helpers import ROOT, Outcome, fail, succeed

GOLDEN = ROOT / "tests" / "golden"
CASES = ("llama-gqa-tied", "llama3-untied", "qwen2", "qwen3", "olmo2", "neox-parallel", "neox-serial")
TOKEN_SETS = ("retain", "forget", "retain_validation", "forget_validation")
BATCH = 4


# -- configurations and token files -------------------------------------------------------------------


def write_config(path: Path, settings: Mapping[str, object]) -> Path:
    """Write YAML in sections; keys are dotted, values are written as JSON, which YAML contains."""
    sections: dict[str, list[str]] = {}
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        text = str(value) if isinstance(value, Path) else value
        sections.setdefault(section, []).append(f"{name}: {json.dumps(text)}")
    lines = list(sections.pop("", ()))
    for section, keys in sections.items():
        lines += [f"{section}:", *(f"  {key}" for key in keys)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_tokens(path: Path, tokens: np.ndarray, vocab: int | None = None) -> Path:
    """Write a token file as io/dataset.h describes it."""
    with h5py.File(path, "w") as file:
        file["tokens"] = np.asarray(tokens, dtype="<u4")
        file.attrs["vocab_size"] = np.uint32(vocab if vocab else int(np.max(tokens)) + 1)
        file.attrs["tokenizer"] = "none"
        file.attrs["source"] = "a test"
    return path


def write_questions(
    path: Path, prompts: Iterable, choices: np.ndarray, answers: np.ndarray
) -> Path:
    """Write a multiple-choice file."""
    prompts = [np.asarray(prompt, dtype="<u4") for prompt in prompts]
    with h5py.File(path, "w") as file:
        file["prompts"] = np.concatenate(prompts)
        file["offsets"] = np.cumsum([0, *map(len, prompts)]).astype("<u8")
        file["choices"] = np.asarray(choices, dtype="<u4")
        file["answers"] = np.asarray(answers, dtype="<u4")
    return path


# -- golden cases -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A golden model with its token files, and a configuration that runs its `listing` trace.

    The configuration names no output folder. It evaluates every 10 passes (2 loops), saves every 3
    loops of the 8, and relearns for 5 steps.
    """

    name: str
    model: Path
    data: Path
    config: Path

    def run(self, folder: Path, *overrides: str, **options: object) -> Outcome:
        """`mudman-mpi run` into `folder`, which succeeds; options are Job's."""
        return succeed("run", self.config, f"output.dir={folder}", *overrides, **options)

    def rejected(self, folder: Path, *overrides: str, **options: object) -> str:
        """`mudman-mpi run` into `folder`, which ends with exit 4; its message."""
        return fail(4, "run", self.config, f"output.dir={folder}", *overrides, **options)

    def trace(self, variant: str) -> dict[str, np.ndarray]:
        """The datasets of a trace, 'base/<tensor>' and the like flattened."""
        found: dict[str, np.ndarray] = {}

        def take(name: str, item: h5py.HLObject) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = item[()]

        with h5py.File(self.model / "traces.h5") as file:
            file[variant].visititems(take)
        return found

    def overrides(self, variant: str) -> list[str]:
        """The key=value arguments that give a trace."""
        with h5py.File(self.model / "traces.h5") as file:
            return str(file[variant].attrs["overrides"]).splitlines()

    def attacked_with(self, folder: Path, rows: np.ndarray) -> list[str]:
        """The overrides of attacks on these rows, evaluated on sentences of LEARNED that begin with
        the other token: an attack reads no row that is evaluated."""
        rows_file = write_tokens(folder / "attack.h5", rows, int(rows.max()) + 1)
        learned = write_tokens(folder / "learned.h5", np.roll(sentences(*LEARNED), 1, axis=1), 5)
        return [
            f"data.forget_validation={rows_file}",
            f"data.forget_evaluation={learned}",
            f"data.retain_evaluation={self.data / 'retain_validation.h5'}",
        ]

    def tokens(self, name: str) -> np.ndarray:
        with h5py.File(self.model / "traces.h5") as file:
            return file[name][:]


def traced_runs() -> list[tuple[str, str]]:
    """Every (case, variant) with a traced unlearning run."""
    runs = []
    for case in CASES:
        with h5py.File(GOLDEN / case / "traces.h5") as file:
            runs += [(case, name) for name, item in file.items() if f"{name}/base" in file]
    return runs


def golden_case(name: str, folder: Path) -> Case:
    """Write a case's token files and configuration into `folder`."""
    model = GOLDEN / name
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    with h5py.File(model / "traces.h5") as file:
        context = file["retain"].shape[1]
        for token_set in TOKEN_SETS:
            write_tokens(folder / f"{token_set}.h5", file[token_set][:], vocab)
        overrides = str(file["listing"].attrs["overrides"]).splitlines()
    settings = {"model.path": model}
    settings |= {f"data.{token_set}": folder / f"{token_set}.h5" for token_set in TOKEN_SETS}
    settings |= {"data.batch_size": BATCH, "data.context_length": context}
    for key, _, value in (line.partition("=") for line in overrides):
        words = [word.strip() for word in value.strip("[]").split(",")]
        settings[key] = words if value.startswith("[") else _plain(value)
    settings |= {"relearn.passes": 10, "relearn.lr": 0.1}
    settings |= {"evaluate.every_passes": 10, "checkpoint.every_loops": 3}
    return Case(name, model, folder, write_config(folder / "config.yaml", settings))


def _plain(value: str) -> object:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


# -- attacks and wrecks that do what a test needs, however the processor rounds -------------------------

LEARNED, CONTRARY, OTHER = (1, 2), (1, 3), (3, 4)
OVERFLOWS = 46


def sentences(first: int, second: int, batches: int = 1) -> np.ndarray:
    """Batches of sequences that alternate two tokens.

    An attack on LEARNED lowers the loss on it from 3.5 to below 1 within a few steps of the rate 0.1,
    and one on CONTRARY or OTHER raises it again, by more than 1.
    """
    return np.tile([first, second], (batches * BATCH, 6))


def overflowing_case(folder: Path) -> Case:
    """A case whose token OVERFLOWS has an embedding that no norm can square; its files lack it."""
    case = golden_case("llama3-untied", folder)
    for token_set in TOKEN_SETS:
        tokens = case.tokens(token_set)
        write_tokens(folder / f"{token_set}.h5", np.where(tokens == OVERFLOWS, 0, tokens), 47)
    return changed_case(case, folder, {"model.embed_tokens.weight": (OVERFLOWS, 2.0**100)})


def changed_case(case: Case, folder: Path, changes: Mapping[str, tuple[object, object]]) -> Case:
    """The case with another model: each tensor's elements at an index become a value."""
    model = folder / "model"
    shutil.copytree(case.model, model)
    tensors = floats_of(model / "model.safetensors")
    for name, (index, value) in changes.items():
        tensors[name][index] = value
    write_safetensors(model / "model.safetensors", tensors)
    config = folder / "changed.yaml"
    config.write_text(case.config.read_text().replace(str(case.model), str(model)))
    return Case(case.name, model, case.data, config)


def with_overflow(rows: np.ndarray, batch: int) -> np.ndarray:
    """The batches of a token file to this one, which holds OVERFLOWS."""
    rows = np.take(rows, np.arange((batch + 1) * BATCH), axis=0, mode="wrap")
    rows[batch * BATCH, 0] = OVERFLOWS
    return rows


# -- safetensors --------------------------------------------------------------------------------------


def read_safetensors(path: Path) -> tuple[dict, dict[str, bytes]]:
    """The header and the bytes of every tensor."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            tensors[name] = content[end + first : end + last]
    return header, tensors


def header_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: 8 + int.from_bytes(content[:8], "little")]


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: str = "F32") -> Path:
    """Write tensors as they are; `dtype` is what the header calls them."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, values in tensors.items():
        entry = {"dtype": dtype, "shape": list(values.shape)}
        header[name] = entry | {"data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(values.tobytes() for values in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def assert_headers_agree(left: Path, right: Path) -> None:
    """Two model folders hold tensors of the same names, shapes and dtypes."""
    shapes = []
    for folder in (left, right):
        header, _ = read_safetensors(folder / "model.safetensors")
        header.pop("__metadata__", None)
        shapes.append({name: (entry["dtype"], entry["shape"]) for name, entry in header.items()})
    assert shapes[0] == shapes[1]


def floats_of(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a float32 file."""
    header, tensors = read_safetensors(path)
    return {
        name: np.frombuffer(data, dtype="<f4").reshape(header[name]["shape"]).copy()
        for name, data in tensors.items()
    }


def rounded_to_bfloat16(values: np.ndarray) -> bytes:
    """Round to nearest even, as bytes."""
    bits = values.astype("<f4").view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


# -- random models ------------------------------------------------------------------------------------


def random_llama(
    folder: Path, *, width: int, mlp: int, layers: int, vocab: int, heads: int = 4, seed: int = 1
) -> Path:
    """A complete Llama folder with random weights and a tied head."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": mlp,
        "max_position_embeddings": 512,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": vocab,
    }
    (folder / "config.json").write_text(json.dumps(config))
    generator = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    square, up, down = (width, width), (mlp, width), (width, mlp)
    for layer in range(layers):
        for name, shape in {
            "self_attn.q_proj": square,
            "self_attn.k_proj": square,
            "self_attn.v_proj": square,
            "self_attn.o_proj": square,
            "mlp.gate_proj": up,
            "mlp.up_proj": up,
            "mlp.down_proj": down,
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    tensors = {}
    for name, shape in shapes.items():
        noise = generator.standard_normal(shape) / np.sqrt(width)
        tensors[name] = (1 + noise if len(shape) == 1 else noise).astype("<f4")
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def hollow_llama(
    folder: Path, *, width: int, mlp: int, layers: int, vocab: int, heads: int, kv: int, tied: bool
) -> Path:
    """A Llama folder whose weights are a hole in a file, which takes no space: for plans."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "max_position_embeddings": 8192, "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16", "vocab_size": vocab,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    square, keys, up = (width, width), (kv * (width // heads), width), (mlp, width)
    shapes = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    if not tied:
        shapes["lm_head.weight"] = (vocab, width)
    for layer in range(layers):
        for name, shape in {
            "self_attn.q_proj": square, "self_attn.k_proj": keys, "self_attn.v_proj": keys,
            "self_attn.o_proj": square, "mlp.gate_proj": up, "mlp.up_proj": up,
            "mlp.down_proj": (width, mlp), "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }.items():  # fmt: skip
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return folder


def random_case(
    folder: Path, model: Path, *, batch: int, context: int, examples: int = 24, **changes: object
) -> Path:
    """Token files of random ids for a model, and a configuration without output folder.

    `changes` are configuration keys with two underscores for the dot.
    """
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    generator = np.random.default_rng(7)
    settings: dict[str, object] = {"model.path": model}
    for name in TOKEN_SETS:
        tokens = generator.integers(0, vocab, (examples, context))
        settings[f"data.{name}"] = write_tokens(folder / f"{name}.h5", tokens, vocab)
    settings |= {"data.batch_size": batch, "data.context_length": context}
    settings |= {"unlearn.loops": 4, "unlearn.unlearning_rate": 0.1}
    settings |= {"unlearn.retaining_rate": 0.1, "unlearn.adv_lr": 0.1, "relearn.passes": 4}
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    return write_config(folder / "config.yaml", settings)
