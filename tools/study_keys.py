"""The keys of the study program's config files, and what becomes of them here."""

from __future__ import annotations

SECTIONS = ("general_config", "relearn_config", "hyperparams", "variants")
GENERAL = (
    "method_name", "target_modules", "model_id", "retain_set_name", "forget_set_name",
    "unlearn_steps", "batch_size", "n_trials", "normalize_grads", "retain_loss_budget",
    "unlearning_loss_fn", "clip_at", "use_masking", "train_adversary", "additional_param_name",
    "square_norm", "allowed_mmlu_acc", "eval_wmdp_every", "lora_amount", "lora_rank",
)  # fmt: skip
RELEARN = ("relearn_steps", "relearn_lr", "relearn_lora_conf")
ADVERSARY = ("adv_decay", "adv_lr", "fork_every_n_loops")
RATES = (*ADVERSARY, "retain_momentum", "retaining_rate", "unlearning_rate")
HYPERPARAMS = (*RATES, "additional_param")
ONE_FOR_ALL = ("model_id", "retain_set_name", "forget_set_name", "batch_size", "n_trials")
METHOD = "surgical_irreversible_unlearning"
CIRCUIT_BREAKERS = "circuit_breakers_no_lora"
LORA_ADVERSARY = "surgical_irreversible_unlearning_lora"
LORA_CIRCUIT_BREAKERS = "circuit_breakers"
METHODS = (METHOD, CIRCUIT_BREAKERS, LORA_ADVERSARY, LORA_CIRCUIT_BREAKERS)
# What the study's circuit breakers with LoRA adapt, whatever target_modules says.
LINEAR = {
    "pythia": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
COUNTS = {"eval_wmdp_every": "evaluate.every_passes", "relearn_steps": "relearn.passes"}
ADAPTERS = {"lora_rank": "unlearn.adv_lora_rank", "lora_amount": "unlearn.adv_lora_count"}
LOSSES = ("neg_cross_entropy", "neg_entropy", "correct_logit_minus_avg")
MOST_MOMENTUM = 0.999
# What an additional parameter can be, and the value at which it does nothing.
ADDITIONAL = {
    "rep_eng_retain_lr": 0,
    "discard_growing_weights": 1,
    "forget_momentum": 0,
    "adv_update": 0,
}
DEFAULTS = {f"unlearn.{name}": value for name, value in ADDITIONAL.items()} | {
    "unlearn.clip_at": 0,
    "unlearn.square_norm": False,
    "unlearn.retain_cross_entropy": True,
    "unlearn.normalization": "global_pre_mask",
    "unlearn.use_masking": True,
    "unlearn.train_adversary": True,
    "unlearn.lora_rank": 0,
    "unlearn.adv_lora_rank": 0,
    "unlearn.adv_lora_count": 1,
    "relearn.with_retain": False,
    "evaluate.every_passes": 30,
}
