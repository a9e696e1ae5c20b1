"""import_gguf.py: models and tokenizers of GGUF files, and what it refuses."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers

import import_gguf
from gguf_helpers import (
    BYTE,
    CONTROL,
    UNUSED,
    USER_DEFINED,
    byte_level_tokens,
    golden_gguf,
    write_gguf,
)
from gguf_tokenizer import CUTS
from job_helpers import succeed
from model_helpers import GOLDEN, floats_of, read_safetensors, rounded_to_bfloat16, write_config
from model_helpers import write_tokens
from text_tokenizer import open_tokenizer

FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
MODELS = [
    ("llama-gqa-tied", "llama"),
    ("llama-gqa-tied", "mistral"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("olmo2", "olmo2"),
]


def import_file(path: Path, out: Path, *options: str) -> dict[str, Any]:
    """The config.json of an import that succeeds."""
    assert import_gguf.main([str(path), str(out), *options]) == 0
    assert sorted(item.name for item in out.iterdir()) == FILES
    return json.loads((out / "config.json").read_text())


def loss_of(model: Path, folder: Path) -> str:
    """What `eval` prints of the losses of some rows."""
    rows = np.random.default_rng(3).integers(0, 47, (4, 12))
    tokens = write_tokens(folder / "rows.h5", rows)
    keys = {"model.path": model, "data.batch_size": 4, "data.context_length": 12}
    keys |= {"data.forget_validation": tokens, "data.retain_validation": tokens}
    printed = succeed("eval", write_config(folder / "eval.yaml", keys)).out
    return "\n".join(line for line in printed.splitlines() if "loss" in line)


# -- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "architecture"), MODELS)
def test_the_model_comes_back(tmp_path: Path, model: str, architecture: str) -> None:
    """The same tensors, and the same losses to the last digit."""
    settings, tensors, own = golden_gguf(model, architecture)
    path = write_gguf(tmp_path / "m.gguf", settings, tensors)
    config = import_file(path, tmp_path / "out")
    found = floats_of(tmp_path / "out" / "model.safetensors")
    assert found.keys() == own.keys()
    assert all(np.array_equal(found[name], own[name]) for name in own)
    expected = json.loads((GOLDEN / model / "config.json").read_text())
    same = expected.keys() - {"model_type", "architectures", "transformers_version"}
    assert [key for key in same & config.keys() if config[key] != expected[key]] == []
    assert config["model_type"] == architecture
    assert "loss" in (loss := loss_of(tmp_path / "out", tmp_path))
    assert loss == loss_of(GOLDEN / model, tmp_path)


def test_mistral_by_its_name(tmp_path: Path) -> None:
    settings, tensors, own = golden_gguf("llama-gqa-tied", "llama")
    settings |= {"general.name": "Mistral 7B v0.1", "llama.attention.sliding_window": 4096}
    config = import_file(write_gguf(tmp_path / "m.gguf", settings, tensors), tmp_path / "out")
    assert config["model_type"] == "mistral" and config["sliding_window"] == 4096
    found = floats_of(tmp_path / "out" / "model.safetensors")
    assert all(np.array_equal(found[name], own[name]) for name in own)


def wide_gguf() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A model whose rows are whole blocks of the quantizations that are tested."""
    settings, tensors, _ = golden_gguf("llama-gqa-tied", "llama")
    for name, values in tensors.items():
        times = (16,) if values.ndim == 1 else (1 if name == "token_embd.weight" else 16, 16)
        tensors[name] = np.tile(values, times)
        if values.ndim == 2:  # no row is another's copy
            tensors[name] *= np.linspace(0.5, 1, len(tensors[name]), dtype=np.float32)[:, None]
    for key in ("embedding_length", "feed_forward_length"):
        settings[f"llama.{key}"] *= 16
    return settings, tensors


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantized(tmp_path: Path, kind: str) -> None:
    """Each matrix is what the package makes of its blocks, its rows put in order after that."""
    settings, tensors = wide_gguf()
    config = import_file(write_gguf(tmp_path / "m.gguf", settings, tensors, kind), tmp_path / "out")
    found = floats_of(tmp_path / "out" / "model.safetensors")
    quantization = gguf.GGMLQuantizationType[kind]

    def read(name: str) -> np.ndarray:
        return gguf.dequantize(gguf.quantize(tensors[name], quantization), quantization)

    assert 0 < np.abs(read("blk.0.ffn_up.weight") - tensors["blk.0.ffn_up.weight"]).max() < 0.2
    assert np.array_equal(found["model.layers.1.mlp.up_proj.weight"], read("blk.1.ffn_up.weight"))
    assert np.array_equal(found["model.embed_tokens.weight"], read("token_embd.weight"))
    q, d = read("blk.2.attn_q.weight"), config["head_dim"]
    for half in (0, 1):
        ours = found["model.layers.2.self_attn.q_proj.weight"].reshape(4, 2, d // 2, -1)[:, half]
        assert np.array_equal(ours, q.reshape(4, d // 2, 2, -1)[:, :, half])


def is_undone(kind: gguf.GGMLQuantizationType) -> bool:
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (NotImplementedError, ValueError):
        return False
    return True


def test_every_quantization(tmp_path: Path) -> None:
    """Any kind of block that the package undoes; zero bytes stand in for a tensor."""
    kinds = [kind for kind in gguf.GGML_QUANT_SIZES if is_undone(kind)]
    assert {"Q4_K", "Q6_K", "IQ4_XS", "Q8_0", "BF16"} <= {kind.name for kind in kinds}
    settings, tensors = wide_gguf()
    for kind in kinds:
        size, block = gguf.GGML_QUANT_SIZES[kind]
        (tmp_path / kind.name).mkdir()
        path = tmp_path / kind.name / "m.gguf"
        blocks = np.zeros((256, 256 // size * block), np.uint8)
        write_gguf(path, settings, tensors | {"blk.0.attn_output.weight": blocks}, raw=kind)
        import_file(path, tmp_path / kind.name / "out")
        header, found = read_safetensors(tmp_path / kind.name / "out" / "model.safetensors")
        name = "model.layers.0.self_attn.o_proj.weight"
        expected = gguf.dequantize(blocks, kind).astype("<f4")
        assert header[name]["shape"] == [256, 256] and found[name] == expected.tobytes(), kind.name


def test_bfloat16(tmp_path: Path) -> None:
    settings, tensors, own = golden_gguf("llama-gqa-tied", "llama")
    for some in (tensors["output_norm.weight"], own["model.norm.weight"]):
        some[:3] = [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8]  # between two bfloat16
    path = write_gguf(tmp_path / "m.gguf", settings, tensors)
    config = import_file(path, tmp_path / "out", "--dtype", "bfloat16")
    header, found = read_safetensors(tmp_path / "out" / "model.safetensors")
    assert config["torch_dtype"] == "bfloat16"
    assert {header[name]["dtype"] for name in own} == {"BF16"}
    assert all(found[name] == rounded_to_bfloat16(own[name]) for name in own)


def llama3(factors: np.ndarray | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A model with the rotation of Llama 3.2, worked out from the lengths of waves."""
    settings, tensors, _ = golden_gguf("llama3-untied", "llama")
    settings["llama.rope.freq_base"] = 500000.0
    found = []
    for i in range(4):
        wave = 2 * np.pi * 500000.0 ** (2 * i / 8)
        if wave < 8192 / 4:
            found.append(1.0)
        elif wave > 8192:
            found.append(32.0)
        else:
            smooth = (8192 / wave - 1) / 3
            found.append(1 / ((1 - smooth) / 32 + smooth))
    given = np.array(found) if factors is None else factors
    return settings, tensors | {"rope_freqs.weight": given.astype(np.float32)}


def test_rotation_of_llama3(tmp_path: Path) -> None:
    settings, tensors = llama3()
    assert len(set(tensors["rope_freqs.weight"])) == 3, "low, between and high"
    config = import_file(write_gguf(tmp_path / "m.gguf", settings, tensors), tmp_path / "out")
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert config["head_dim"] == 8 and not config["tie_word_embeddings"]
    settings, tensors = llama3(np.ones(4))
    config = import_file(write_gguf(tmp_path / "n.gguf", settings, tensors), tmp_path / "plain")
    assert config["rope_scaling"] is None


# -- tokenizers -----------------------------------------------------------------------------------


def tokens_of(tmp_path: Path, changes: dict[str, Any]) -> Path:
    """The folder made of a model with this tokenizer, and rows for all its tokens."""
    settings, tensors, _ = golden_gguf("llama-gqa-tied", "llama")
    kept = {k: v for k, v in settings.items() if not k.startswith("tokenizer.")}
    n = len(changes["tokenizer.ggml.tokens"])
    tensors["token_embd.weight"] = np.resize(tensors["token_embd.weight"], (n, 16))
    path = write_gguf(tmp_path / "m.gguf", kept | changes, tensors)
    import_file(path, tmp_path / "out")
    return tmp_path / "out"


def test_byte_level(tmp_path: Path) -> None:
    """Digits stand alone before words are cut, types are kept, and prepare_data reads it."""
    extra = [("<|end|>", CONTROL), ("<mark>", USER_DEFINED), ("[PAD]", UNUSED)]
    tokens = byte_level_tokens(extra) | {"tokenizer.chat_template": "{{ messages }}"}
    end = len(tokens["tokenizer.ggml.tokens"]) - 3
    tokens["tokenizer.ggml.eos_token_id"] = end
    folder = tokens_of(tmp_path, tokens)
    tokenizer = open_tokenizer(str(folder))
    pieces = {text: i for i, text in enumerate(tokens["tokenizer.ggml.tokens"])}

    def ids(*spelled: str) -> list[int]:
        return [pieces[piece] for piece in spelled]

    assert tokenizer.vocab_size == end + 2
    assert tokenizer.encode(["the cat 12\n\n1", "<|end|>the<mark>[PAD]"]) == [
        ids("the", "\u0120cat", "\u0120", "1", "2", "\u010a\u010a", "1"),
        ids("<|end|>", "the", "<mark>", *"[PAD]"),
    ]
    assert tokenizer.decode(ids("the", "\u0120cat", "<|end|>")) == "the cat<|end|>"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "<|end|>" and config["chat_template"] == "{{ messages }}"


def test_cuts(tmp_path: Path) -> None:
    """Where each cut separates; what the pieces merge to is another matter."""
    expected = {
        "gpt-2": ["It", "'s", " 1234", ",", " it", "'", "S", " (", "x", ").", "\n", "\n", "A"],
        "smollm": [
            "It",
            "'s",
            " ",
            *"1234",
            ",",
            " it",
            "'",
            "S",
            " (",
            "x",
            ").",
            "\n",
            "\n",
            "A",
        ],
        "llama-bpe": ["It", "'s", " ", "123", "4", ",", " it", "'S", " (", "x", ").\n\n", "A"],
        "qwen2": ["It", "'s", " ", *"1234", ",", " it", "'S", " (", "x", ").\n\n", "A"],
        "tekken": ["It", "'s", " ", *"1234", ",", " it", "'S", " (", "x", ").\n\n", "A"],
    }
    assert expected.keys() == CUTS.keys()
    for name, pieces in expected.items():
        (tmp_path / name).mkdir()
        folder = tokens_of(tmp_path / name, byte_level_tokens() | {"tokenizer.ggml.pre": name})
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        cut = tokenizer.pre_tokenizer.pre_tokenize_str("It's 1234, it'S (x).\n\nA")
        spelled = [piece.replace("\u0120", " ").replace("\u010a", "\n") for piece, _ in cut]
        assert spelled == pieces, name


def test_begin_and_end(tmp_path: Path) -> None:
    tokens = byte_level_tokens([("<s>", CONTROL), ("</s>", CONTROL)])
    first = len(tokens["tokenizer.ggml.tokens"]) - 2
    tokens |= {"tokenizer.ggml.bos_token_id": first, "tokenizer.ggml.eos_token_id": first + 1}
    for i, (changes, before, after) in enumerate((
        ({}, [], []),
        ({"tokenizer.ggml.pre": "llama-bpe"}, [first], []),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, [], []),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, [first], [first + 1]),
    )):  # fmt: skip
        (tmp_path / str(i)).mkdir()
        folder = str(tokens_of(tmp_path / str(i), tokens | changes))
        plain = open_tokenizer(folder, special_tokens=False).encode(["the cat"])[0]
        assert open_tokenizer(folder).encode(["the cat"]) == [[*before, *plain, *after]]


def test_sentencepiece(real_data: Path, tmp_path: Path) -> None:
    """The vocabulary and scores of a real one, and the ids that llama2.c's encoder gives."""
    folder = real_data / "models" / "stories260K"
    content = (folder / "tok512.bin").read_bytes()
    tokens, scores, at = [], [], 4
    while at < len(content):
        score, size = np.frombuffer(content[at : at + 8], "<f4,<i4")[0]
        tokens.append(content[at + 8 : at + 8 + size].decode())
        scores.append(float(score))
        at += 8 + size
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    spelled = sorted(vocab, key=vocab.get)
    assert len(tokens) == len(spelled) == 512
    types = [2, CONTROL, CONTROL] + [BYTE] * 256 + [1] * 253
    made = tokens_of(tmp_path, {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": spelled,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 0,
    })  # fmt: skip
    lines = (folder / "tokenizer_reference.jsonl").read_text().strip().split("\n")
    tokenizer = open_tokenizer(str(made), special_tokens=False)
    for reference in map(json.loads, lines):
        expected = reference["ids"][1:] if reference["ids"][:1] == [1] else reference["ids"]
        assert tokenizer.encode([reference["text"]]) == [expected]
    assert open_tokenizer(str(made)).encode(["a"])[0][0] == 1


# -- errors ---------------------------------------------------------------------------------------


def refused(path: Path, out: Path, capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    """The one line of an import that fails and leaves nothing."""
    before = sorted(out.parent.iterdir())
    assert import_gguf.main([str(path), str(out)]) == status
    message = capsys.readouterr().err
    assert message.startswith("import_gguf.py: ") and message.count("\n") == 1
    assert sorted(out.parent.iterdir()) == before
    return message


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"general.architecture": "gemma"}, "architecture 'gemma' is not supported"),
    "experts": ({"llama.expert_count": 8}, "the setting llama.expert_count is 8, which is not"),
    "scaling": ({"llama.rope.scaling.type": "yarn"}, "the setting llama.rope.scaling.type is 'yarn'"),
    "unknown": ({"llama.logit_scale": 2.0}, "the setting llama.logit_scale is 2.0"),
    "rotary": ({"llama.rope.dimension_count": 2}, "llama.rope.dimension_count is not the size of a head"),
    "missing": ({"llama.block_count": None}, "the setting llama.block_count is missing"),
    "list": ({"llama.attention.head_count": [4, 4]}, "is [4, 4], not of type int"),
    "zero": ({"llama.attention.head_count": 0}, "the setting llama.attention.head_count is 0"),
    "layers": ({"llama.block_count": 4}, "tensor blk.3.attn_norm.weight is missing"),
    "fewer": ({"llama.block_count": 2}, "tensor blk.2.attn_k.weight is not one of"),
    "shape": ({"llama.feed_forward_length": 20}, "tensor blk.0.ffn_gate.weight is (22, 16), not (20, 16)"),
    "part": ({"split.count": 2}, "one part of a model in several files"),
    "cut": ({"tokenizer.ggml.pre": "other"}, "tokenizer.ggml.pre 'other' is not supported: gpt-2"),
    "no cut": ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre '(missing)' is not supported"),
    "pieces": ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model 'bert' is not supported"),
    "merge": ({"tokenizer.ggml.merges": ["a zz"]}, "'a zz' is not a merge"),
    "twice": ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]}, "names a token twice"),
    "types": ({"tokenizer.ggml.token_type": [1]}, "token_type has not one entry for each token"),
    "many": (
        {"tokenizer.ggml.tokens": [str(i) for i in range(54)], "tokenizer.ggml.token_type": [1] * 54, "tokenizer.ggml.merges": ["1 2"]},
        "the tokenizer has 54 tokens, the model 53",
    ),
    "end": ({"tokenizer.ggml.eos_token_id": 9999}, "eos_token_id 9999 is not a token"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, words = REFUSED[name]
    settings, tensors, _ = golden_gguf("llama-gqa-tied", "llama")
    settings = {k: v for k, v in (settings | changes).items() if v is not None}
    path = write_gguf(tmp_path / "m.gguf", settings, tensors)
    message = refused(path, tmp_path / "out", capsys)
    assert message.startswith(f"import_gguf.py: {path}: ") and words in message


TENSORS: dict[str, tuple[Callable[[dict[str, np.ndarray]], Any], str]] = {
    "no embedding": (lambda t: t.pop("token_embd.weight"), "tensor token_embd.weight is missing"),
    "extra": (
        lambda t: t.update({"blk.0.odd.weight": np.ones(4)}),
        "tensor blk.0.odd.weight is not",
    ),
    "not finite": (lambda t: t["blk.1.ffn_up.weight"].fill(np.inf), "values that are not finite"),
    "rotation": (
        lambda t: t.update({"rope_freqs.weight": np.array([1.0, 3.0])}),
        "tensor rope_freqs.weight is not the llama3 scaling",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_refused_tensors(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, words = TENSORS[name]
    settings, tensors, _ = golden_gguf("llama-gqa-tied", "llama")
    change(tensors)
    path = write_gguf(tmp_path / "m.gguf", settings, tensors)
    assert words in refused(path, tmp_path / "out", capsys)


def test_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut anywhere, and bytes that are something else."""
    settings, tensors, _ = golden_gguf("llama-gqa-tied", "llama")
    content = write_gguf(tmp_path / "m.gguf", settings, tensors).read_bytes()
    path = tmp_path / "damaged.gguf"
    for size in (0, 3, 4, 20, 24, 100, 1000, len(content) // 2, len(content) - 100):
        path.write_bytes(content[:size])
        message = refused(path, tmp_path / "out", capsys)
        assert ("not a GGUF file" if size < 4 else "cut short") in message, size
    generator = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(content)
        for at in generator.integers(4, 4000, 3):
            damaged[at] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        status = import_gguf.main([str(path), str(tmp_path / "perhaps")])
        assert status in (0, 2) and "Traceback" not in capsys.readouterr().err
        if status == 0:
            for item in (tmp_path / "perhaps").iterdir():
                item.unlink()
    path.write_bytes(b"PK\x03\x04" + content)
    assert "not a GGUF file" in refused(path, tmp_path / "out", capsys)
    assert "No such file" in refused(tmp_path / "none.gguf", tmp_path / "out", capsys)


def test_out_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, tensors, _ = golden_gguf("llama-gqa-tied", "llama")
    path = write_gguf(tmp_path / "m.gguf", settings, tensors)
    (tmp_path / "out").mkdir()
    import_file(path, tmp_path / "out")
    assert f"{tmp_path / 'out'}: is there already" in refused(path, tmp_path / "out", capsys)


def test_full_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 1, and nothing half-written stays."""
    settings, tensors, _ = golden_gguf("llama-gqa-tied", "llama")
    path = write_gguf(tmp_path / "m.gguf", settings, tensors)

    def full(file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(import_gguf, "make_durable", full)
    assert "No space left on device" in refused(path, tmp_path / "out", capsys, 1)
