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

# What came later is traced on the smallest W that has several tensors.
SMALL = GENTLE | unlearn(target_modules=["v_proj"], loops=6)
ABLATIONS = unlearn(forget_momentum=0.6, discard_growing_weights=0.3, adv_update=0.5)
# Other methods as special cases of Algorithm 1.
PLAIN = SMALL | unlearn(train_adversary=False, use_masking=False, normalization="none")

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
    "forget_momentum": SMALL | unlearn(forget_momentum=0.6),
    "discard_growing_weights": SMALL | unlearn(discard_growing_weights=0.3),
    "adv_update": SMALL | unlearn(adv_update=0.5),
    "ablations_post_mask": SMALL | ABLATIONS | unlearn(normalization="global_post_mask"),
    "bfloat16_ablations": SMALL | ABLATIONS | BFLOAT16 | unlearn(adv_decay=0.7),
    "gradient_ascent": PLAIN | unlearn(retaining_rate=0.0),
    "gradient_difference": PLAIN,
    "npo": SMALL | unlearn(unlearning_loss_fn="npo"),
    "npo_alone": PLAIN | unlearn(unlearning_loss_fn="npo", unlearning_rate=0.02, npo_beta=0.5),
    "simnpo": SMALL | unlearn(unlearning_loss_fn="simnpo", npo_beta=2.5, simnpo_gamma=0.25),
}

# Losses on hidden states. Only the value projections are trained: small traces.
SMALL = unlearn(target_modules=["v_proj"], loops=6, fork_every_n_loops=2)
NO_ADVERSARY = unlearn(train_adversary=False)
# The paper's TAR2 and its circuit breakers without LoRA, but for the rates. In float32 the latter begin at a
# gradient that is zero but for rounding: b is W rounded to bfloat16 here, so that they begin beside the frozen model.
TAR2 = unlearn(
    unlearning_loss_fn="neg_entropy",
    use_masking=False,
    retain_momentum=0.0,
    rep_eng_retain_lr=1.0,
    square_norm=True,
    normalization="none",
    retaining_rate=0.1,
    unlearning_rate=0.05,
)
CIRCUIT_BREAKERS = {"model.state_dtype": "bfloat16"} | NO_ADVERSARY | unlearn(
    unlearning_loss_fn="circuit_breaker",
    use_masking=False,
    retain_momentum=0.0,
    rep_eng_retain_lr=1.0,
    retain_cross_entropy=False,
    rate_scale="study",
    unlearning_rate=0.003,
    retaining_rate=0.03,
    target_modules=["gate_proj"],
    loops=4,
)
RMU = unlearn(
    unlearning_loss_fn="rmu",
    rep_eng_retain_lr=0.4,
    square_norm=True,
    retain_cross_entropy=False,
    use_masking=False,
)
STATES = {
    "rep_eng": unlearn(rep_eng_retain_lr=0.7),
    "tar2": TAR2,
    "circuit_breakers_no_lora": CIRCUIT_BREAKERS,
    "circuit_breaker": NO_ADVERSARY | unlearn(unlearning_loss_fn="circuit_breaker"),
    "circuit_breaker_fresh": unlearn(unlearning_loss_fn="circuit_breaker", graph="fresh"),
    "stream_activation": unlearn(unlearning_loss_fn="stream_activation"),
    "stream_activation_fresh": unlearn(unlearning_loss_fn="stream_activation", graph="fresh"),
    "rmu": RMU,
    "rmu_no_adversary": NO_ADVERSARY | unlearn(unlearning_loss_fn="rmu", rmu_layer=2, rmu_coefficient=20.0),
}
LLAMA_GQA_TIED |= {name: SMALL | change for name, change in STATES.items()}

# Adversaries made of adapters. The fork is rounded to 6 loops, and shared among the sets: every 6, 3 and 2.
ADAPTERS = GENTLE | unlearn(target_modules=["v_proj"], loops=7, fork_every_n_loops=8, adv_lora_rank=2, adv_lr=0.4)
LLAMA_GQA_TIED |= {
    "lora_adversary": ADAPTERS | unlearn(adv_decay=0.7),
    "lora_adversaries": ADAPTERS | unlearn(adv_lora_count=2, loops=5, adv_lr=0.25, graph="fresh", forget_momentum=0.5),
    "lora_adversary_reuse": ADAPTERS | unlearn(adv_lora_count=3, loops=4, adv_lora_rank=3, graph="reuse"),
}
# Adapters in place of W. Circuit breakers retain by cross-entropy, too: the other two losses alone have no gradient
# where they begin, but for rounding.
BASE_ADAPTERS = GENTLE | NO_ADVERSARY | unlearn(target_modules=["v_proj", "o_proj"], loops=6, lora_rank=3)
LLAMA_GQA_TIED |= {
    "lora_base": BASE_ADAPTERS | unlearn(unlearning_loss_fn="neg_entropy", forget_momentum=0.5),
    "lora_base_post_mask": BASE_ADAPTERS | unlearn(normalization="global_post_mask", target_modules=["up_proj"]),
    "lora_circuit_breakers": BASE_ADAPTERS | unlearn(
        unlearning_loss_fn="circuit_breaker",
        use_masking=False,
        retain_momentum=0.0,
        rep_eng_retain_lr=1.0,
        rate_scale="study",
        unlearning_rate=0.002,
        retaining_rate=0.02,
        target_modules=ALL_LLAMA,
    ),
}
NEOX_STATES = {
    "rmu": unlearn(unlearning_loss_fn="rmu", rep_eng_retain_lr=0.5, target_modules=["dense"], loops=6),
}

# Of rows of different lengths with answers: each kind of loss.
ROWS = {
    "listing": {},
    "neg_entropy": unlearn(graph="fresh", unlearning_loss_fn="neg_entropy"),
    "logit": unlearn(unlearning_loss_fn=LOGIT),
    "npo": unlearn(unlearning_loss_fn="npo"),
    "simnpo": unlearn(unlearning_loss_fn="simnpo", npo_beta=2.5, simnpo_gamma=0.25),
    "rep_eng": unlearn(rep_eng_retain_lr=0.7),
    "circuit_breaker": NO_ADVERSARY | unlearn(unlearning_loss_fn="circuit_breaker"),
    "stream_activation": unlearn(unlearning_loss_fn="stream_activation"),
    "rmu": RMU,
}
ROWS_CASES = ("llama-gqa-tied",)


def rows_of(case: Case) -> dict[str, dict]:
    """Runs on rows of different lengths."""
    small = data_of(case) | COMMON | GENTLE | SMALL
    return {name: small | change for name, change in ROWS.items()}


TWO_GRAPHS = {"listing": {}, "fresh": unlearn(graph="fresh")}

VARIANTS = {
    "llama-gqa-tied": (["gate_proj"], LLAMA_GQA_TIED),
    "llama3-untied": (["gate_proj", "v_proj"], TWO_GRAPHS),
    "qwen2": (["gate_proj", "q_proj"], {name: GENTLE | change for name, change in TWO_GRAPHS.items()}),
    "qwen3": (["gate_proj", "k_proj"], {name: GENTLE | change for name, change in TWO_GRAPHS.items()}),
    "olmo2": (["gate_proj", "o_proj"], TWO_GRAPHS | {"stream_activation": unlearn(unlearning_loss_fn="stream_activation")}),
    "neox-parallel": (
        ["dense_h_to_4h"],
        TWO_GRAPHS | {"all_modules": unlearn(target_modules=ALL_NEOX, loops=6)} | NEOX_STATES,
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
ADAMW = {"relearn.optimizer": "adamw", "relearn.lr": 0.01}
LORA = {"relearn.lora_rank": 3, "seed": 7}
ADAPTERS_STAY = NO_ADVERSARY | unlearn(target_modules=["v_proj", "down_proj"], lora_rank=3)
# Full AdamW where no gradient is rounding only: it would divide that by itself.
MORE_RELEARNS = {
    "llama-gqa-tied": {
        "relearn_adamw": RELEARNS["relearn"] | ADAMW,
        "relearn_lora": RELEARNS["relearn"] | LORA,
        "relearn_adapters": RELEARNS["relearn"] | ADAPTERS_STAY,
        "relearn_adapters_after": LLAMA_GQA_TIED["lora_circuit_breakers"]
        | RELEARNS["relearn_with_retain"]
        | {"relearn.lr": 0.05},
    },
    "neox-parallel": {"relearn_lora_adamw": RELEARNS["relearn_with_retain"] | ADAMW | LORA},
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


def on_states(config: dict) -> bool:
    """Whether a loss of the run is one on hidden states."""
    fn = config["unlearn.unlearning_loss_fn"]
    return fn in ("circuit_breaker", "stream_activation", "rmu") or config.get("unlearn.rep_eng_retain_lr", 0) > 0


def unlearns(config: dict) -> bool:
    """Whether a relearning is traced after unlearning, and not from the stored weights."""
    return "unlearn.loops" in config


def relearns_of(case: Case) -> dict[str, dict]:
    runs = RELEARNS | MORE_RELEARNS[case.name]
    return {name: data_of(case) | (COMMON if unlearns(config) else {}) | config for name, config in runs.items()}


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
