"""Which runs are traced, for each model case, as overrides of the program's configuration keys."""

from models import Case

BATCH = 4

# fork_every_n_loops below loops, so that forks happen inside.
COMMON = {
    "unlearn.loops": 8,
    "unlearn.fork_every_n_loops": 3,
    "unlearn.unlearning_loss_fn": "neg_cross_entropy",
    "unlearn.graph": "listing",
    "unlearn.unlearning_rate": 0.2,
    "unlearn.retaining_rate": 0.3,
    "unlearn.adv_lr": 0.5,
    "unlearn.retain_momentum": 0.8,
}


def unlearn(**changes) -> dict:
    """Keywords are keys of the `unlearn` section."""
    return {f"unlearn.{key}": value for key, value in changes.items()}


LOGIT = "correct_logit_minus_avg"
ALL_LLAMA = ["gate_proj", "up_proj", "down_proj", "q_proj", "k_proj", "v_proj", "o_proj"]
ALL_NEOX = ["dense_h_to_4h", "dense_4h_to_h", "query_key_value", "dense"]
# Attention weights make for a stiffer loss: smaller rates keep rounding errors from growing.
GENTLE = unlearn(unlearning_rate=0.1, retaining_rate=0.1, adv_lr=0.15)
BFLOAT16 = {"model.state_dtype": "bfloat16", "unlearn.loops": 6}

LLAMA_GQA_TIED = {
    "listing": {},
    "fresh": unlearn(graph="fresh"),
    "reuse": unlearn(graph="reuse"),
    "listing_neg_entropy": unlearn(unlearning_loss_fn="neg_entropy"),
    "fresh_neg_entropy": unlearn(graph="fresh", unlearning_loss_fn="neg_entropy"),
    "listing_logit": unlearn(unlearning_loss_fn=LOGIT),
    "fresh_logit": unlearn(graph="fresh", unlearning_loss_fn=LOGIT),
    "listing_logit_clip": unlearn(unlearning_loss_fn=LOGIT, clip_at=-1.0),
    "no_masking": unlearn(use_masking=False),
    "global_post_mask": unlearn(normalization="global_post_mask"),
    "global_post_mask_study": unlearn(normalization="global_post_mask", rate_scale="study", unlearning_rate=0.006),
    "per_parameter": unlearn(normalization="per_parameter", unlearning_rate=0.1),
    "no_normalization": unlearn(normalization="none", unlearning_rate=0.5),
    "study": unlearn(rate_scale="study", unlearning_rate=0.006),
    "adv_decay": unlearn(adv_decay=0.7),
    "no_adversary": unlearn(train_adversary=False),
    "no_momentum": unlearn(retain_momentum=0.0),
    "all_modules": GENTLE | unlearn(target_modules=ALL_LLAMA, loops=6),
    "bfloat16": BFLOAT16 | unlearn(adv_decay=0.7),
    "bfloat16_study": BFLOAT16 | unlearn(rate_scale="study", unlearning_rate=0.006),
}

TWO_GRAPHS = {"listing": {}, "fresh": unlearn(graph="fresh")}

VARIANTS = {
    "llama-gqa-tied": (["gate_proj"], LLAMA_GQA_TIED),
    "llama3-untied": (["gate_proj", "v_proj"], TWO_GRAPHS),
    "qwen2": (["gate_proj", "q_proj"], {name: GENTLE | change for name, change in TWO_GRAPHS.items()}),
    "neox-parallel": (
        ["dense_h_to_4h"],
        TWO_GRAPHS | {"all_modules": unlearn(target_modules=ALL_NEOX, loops=6)},
    ),
    "neox-serial": (
        ["dense_h_to_4h"],
        TWO_GRAPHS | {"all_modules": unlearn(target_modules=ALL_NEOX, loops=6)},
    ),
}

RELEARN_CASES = ("llama-gqa-tied", "neox-parallel")
RELEARN = {"evaluate.batches": 1, "relearn.lr": 0.1}
RELEARNS = {
    "relearn": RELEARN | {"relearn.passes": 10, "relearn.with_retain": False},
    "relearn_with_retain": RELEARN | {"relearn.passes": 20, "relearn.with_retain": True},
}

PRETRAIN_CASES = ("llama-gqa-tied",)
PRETRAIN = {
    "pretrain.steps": 6,
    "pretrain.lr": 0.01,
    "pretrain.betas": [0.9, 0.95],
    "pretrain.weight_decay": 0.1,
    "pretrain.warmup": 2,
    "pretrain.min_lr_ratio": 0.1,
    "pretrain.clip": 1.0,
}


def data_of(case: Case) -> dict:
    return {"data.batch_size": BATCH, "data.context_length": case.context}


def variants_of(case: Case) -> dict[str, dict]:
    modules, changes = VARIANTS[case.name]
    common = data_of(case) | COMMON | unlearn(target_modules=modules)
    return {name: common | change for name, change in changes.items()}


def relearns_of(case: Case) -> dict[str, dict]:
    return {name: data_of(case) | config for name, config in RELEARNS.items()}


def pretrain_of(case: Case) -> dict:
    return data_of(case) | PRETRAIN


def as_overrides(config: dict) -> str:
    """`key=value` lines in the program's own notation."""
    return "\n".join(f"{key}={as_text(value)}" for key, value in config.items())


def as_text(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(as_text(item) for item in value) + "]"
    return str(value)
