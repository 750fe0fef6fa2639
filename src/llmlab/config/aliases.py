"""Words of other tools (transformers, nanoGPT, LitGPT, Lightning and their like) and the keys that say the same here.

{word: targets}. A target is a key, or GROUP=CHOICE where the same thing is a choice, or GROUP=NAME for any of a group's.
"""

from __future__ import annotations


def _table(rows: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """{targets: words} turned round; a word in several rows has the targets of all."""
    found: dict[str, tuple[str, ...]] = {}
    for targets, words in rows.items():
        for word in words.split():
            found[word] = (*found.get(word, ()), *targets.split())
    return found


ALIASES: dict[str, tuple[str, ...]] = _table(
    {
        # the model
        "model.dim": "hidden_size n_embd d_model hidden_dim embed_dim emb_dim embedding_dim width",
        "model.n_layers": "num_hidden_layers n_layer num_layers nlayers depth",
        "model.n_heads": "num_attention_heads n_head num_heads nheads",
        "model.n_kv_heads": "num_key_value_heads n_query_groups n_kv_head num_kv_heads multi_query_group_num",
        "model.head_dim": "head_size d_kv kv_channels",
        "model.ffn_dim": "intermediate_size ffn_hidden_size d_ff n_inner ffn_dim hidden_features mlp_dim",
        # The names of transformers' config classes: each family has its own.
        "model.norm_eps": "norm.eps rms_norm_eps layer_norm_eps layer_norm_epsilon layernorm_epsilon",
        "model.dropout": "hidden_dropout hidden_dropout_prob resid_pdrop embd_pdrop residual_dropout",
        "model.attention.dropout": "attention_dropout attn_pdrop attention_probs_dropout_prob",
        "model.attention.qkv_bias": "attention_bias add_qkv_bias use_qkv_bias",
        "model.attention.softcap": "attn_logit_softcapping attention_logit_softcapping",
        "model.logit_softcap": "final_logit_softcapping",
        # nanoGPT's `bias` is of both, and of the norms.
        "model.ffn.bias model.attention.qkv_bias": "bias use_bias mlp_bias",
        "model.tie_embeddings": "tie_word_embeddings tie_weights weight_tying tied_embeddings",
        "model.moe.n_experts": "num_experts n_routed_experts num_local_experts n_expert moe_num_experts",
        "model.moe.per_token": "num_experts_per_tok n_expert_per_token top_k moe_top_k experts_per_token",
        "model.moe.ffn_dim": "moe_intermediate_size",
        "model.moe.n_shared": "n_shared_experts num_shared_experts",
        "model.moe.balance": "router_aux_loss_coef aux_loss_alpha",
        "model.moe.z": "router_z_loss_coef",
        "model.max_positions data.seq_len": "max_position_embeddings n_positions",
        "model.token_types": "type_vocab_size",
        "position.theta": "rope_theta rope_base rotary_emb_base rotary_base",
        "position.fraction": "partial_rotary_factor rotary_pct rotary_percentage rope_fraction",
        "position.scaling": "rope_scaling rope_type",
        "init.std": "initializer_range init_std",
        "model=NAME": "model_type architecture architectures arch model_name family",
        "init_from": "model_name_or_path pretrained pretrained_model_name_or_path checkpoint_dir checkpoint ckpt",
        "ffn=NAME": "hidden_act activation activation_function mlp mlp_type",
        "window=NAME": "sliding_window window_size",
        "kernel=NAME": "attn_implementation attention_implementation flash flash_attn use_flash_attention flash_attention",
        # the text
        "data.seq_len": "block_size context_length context_size max_seq_length max_seq_len seq_length seqlen n_ctx ctx_len "
        "sequence_length max_length context",
        "data.fields.text": "text_column text_column_name sentence1_key text_key",
        "data.fields.label": "label_column label_column_name label_key target_column",
        "tokenizer.vocab_size": "padded_vocab_size n_vocab vocabulary_size",
        "data=NAME data.path": "dataset dataset_name train_file data_path data_dir train_data input_file text corpus",
        "data.validation": "val_split validation_split test_size val_fraction val_size",
        "data.num_workers": "dataloader_num_workers workers",
        "data.max_documents": "max_train_samples max_samples",
        "filter=NAME": "filters data.filter data.filters filtering",
        "filter=duplicates": "dedup deduplicate deduplication",
        "filter=minhash": "fuzzy_dedup near_dedup minhash_dedup",
        "filter=language": "langid language_filter lang_filter",
        # the step
        "optimizer.lr": "learning_rate max_lr peak_lr base_lr",
        "optimizer.weight_decay": "wd decay_rate",
        "optimizer.beta1": "adam_beta1",
        "optimizer.beta2": "adam_beta2",
        "optimizer.beta1 optimizer.beta2": "betas",
        "optimizer.eps": "adam_epsilon adam_eps epsilon",
        "optimizer=NAME": "optim optimizer_name optimizer_type",
        "schedule=NAME": "lr_scheduler_type lr_scheduler scheduler lr_schedule decay_lr",
        "schedule.warmup_steps": "warmup_iters warmup num_warmup_steps lr_warmup_steps lr_warmup_iters",
        "schedule.warmup_share": "warmup_ratio warmup_fraction lr_warmup_fraction",
        # A share of the peak, where nanoGPT's min_lr is a rate.
        "schedule.floor": "min_lr min_lr_ratio final_lr_ratio",
        "train.clip": "grad_clip max_grad_norm max_norm clip_grad gradient_clipping gradient_clip clip_grad_norm",
        "train.learns": "freeze frozen unfreeze trainable trainable_params unfrozen_parameters freeze_trainable_modules "
        "freeze_layers freeze_backbone freeze_base_model modules_to_save",
        "train.batch_size": "global_batch_size train_batch_size batch bs",
        # An accumulation is not given: it follows from the batch and the micro-batch.
        "train.micro_batch_size": "per_device_train_batch_size train_micro_batch_size_per_gpu device_batch_size "
        "gradient_accumulation_steps grad_accum grad_accum_steps accumulation_steps",
        # the run
        "budget.steps": "max_iters max_steps num_steps total_steps train_steps iterations num_iterations lr_decay_iters",
        "budget.tokens": "max_tokens train_tokens total_tokens num_tokens",
        # There are no epochs here: a run is as long as its budget.
        "budget.tokens budget.steps": "epochs num_train_epochs max_epochs num_epochs n_epochs epoch",
        "budget.minutes": "time max_time time_limit max_hours",
        "train.validate_every": "eval_interval eval_steps eval_every eval_freq val_interval val_every eval_strategy",
        "train.validation_batches": "eval_iters max_eval_samples val_batches eval_batches",
        "train.log_every": "log_interval logging_steps log_freq logging_interval",
        "train.checkpoint_every": "save_steps save_interval save_every ckpt_interval checkpoint_interval save_freq "
        "always_save_checkpoint save_strategy",
        "train.keep": "save_total_limit keep_last_n",
        "resume": "resume_from_checkpoint load_checkpoint restore",
        "seed": "random_seed data_seed",
        "precision=NAME": "dtype torch_dtype amp mixed_precision ptdtype param_dtype",
        "precision=bf16-mixed": "bf16 bfloat16",
        "precision=16-mixed": "fp16 half float16",
        "precision=32-true": "fp32 float32",
        "placement.compile": "torch_compile use_compile",
        "placement.activation_checkpointing": "gradient_checkpointing checkpoint_activations activation_checkpoint recompute",
        "trainer.accelerator": "device device_type use_cpu no_cuda cpu cuda",
        "trainer.devices": "gpus num_gpus n_gpus num_devices ngpus nproc_per_node world_size",
        "trainer.num_nodes": "nnodes nodes",
        "strategy=NAME": "distributed parallel backend deepspeed fsdp_config",
        "strategy.tensor_parallel": "tp tp_size tensor_parallel_size tensor_model_parallel_size",
        "hydra.run.dir": "output_dir out_dir save_dir run_dir logging_dir out output outdir dest folder to",
        "experiment_name": "run_name exp_name name",
        "logger=NAME": "report_to wandb_log use_wandb log_with",
        "logger=wandb": "wandb_project wandb_run_name wandb_entity wandb",
    }
)

EPOCHS = (
    "a run is as long as its budget, however often that reads the text: N epochs are budget.tokens=N x the training tokens, "
    "which the head of a run names"
)
NOTES = {w: EPOCHS for w, targets in ALIASES.items() if targets == ("budget.tokens", "budget.steps")}
NOTES |= dict.fromkeys(
    ("gradient_accumulation_steps", "grad_accum", "grad_accum_steps", "accumulation_steps"),
    "the steps accumulated are train.batch_size / (train.micro_batch_size x devices)",
)

# The same for the arguments of generate, eval, chat, export and their like; one that a command lacks is not offered.
ARGUMENTS: dict[str, tuple[str, ...]] = _table(
    {
        "run hf": "model model_path checkpoint ckpt checkpoint_path checkpoint_dir out_dir model_name_or_path pretrained",
        "hf": "model_name repo repo_id",
        "to": "output output_dir out dest destination save_dir path",
        "prompt": "start text input question",
        "prompts": "prompt_file input_file file",
        "max_new": "max_new_tokens max_tokens max_length length n_tokens num_tokens",
        "num": "num_samples n_samples num_return_sequences samples n",
        "temperature": "temp t",
        "top_k": "topk k",
        "top_p": "topp p nucleus",
        "stop": "eos stop_sequences stop_strings",
        "seed": "random_seed",
        "system": "system_prompt",
        "data": "dataset text eval_data file",
        "seq_len": "block_size context_length max_length max_seq_length",
        "device": "gpu accelerator hardware",
        "memory": "gpu_memory vram",
        "limit": "n max head last",
        "status": "state",
        "sort": "order sort_by order_by",
        "baseline": "reference base",
        "metric": "metrics measure",
        "out": "output output_dir to",
    }
)
