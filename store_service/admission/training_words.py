"""Words that configs carry along and no arithmetic depends on: how training went, and what hubs say of a model."""

TRAINING_WORDS = frozenset({
    # PEFT before 0.3, and ms-swift beside PEFT's own fields.
    "merge_weights", "lora_dtype", "lorap_lr_ratio", "lorap_emb_lr",
    # mlx-lm.
    "adapter_path", "batch_size", "clear_cache_threshold", "completion_feature", "config", "data",
    "grad_accumulation_steps", "grad_checkpoint", "hf_dataset", "iters", "learning_rate", "lr_schedule",
    "mask_prompt", "max_seq_length", "optimizer", "optimizer_config", "project_name", "prompt", "prompt_feature",
    "report_to", "resume_adapter_file", "save_every", "seed", "steps_per_eval", "steps_per_report", "test",
    "test_batches", "train", "val_batches", "wandb",
    # mlx-lm-lora and mlx-tune: preference training and reinforcement.
    "answer_feature", "beta", "chat_feature", "chosen_feature", "de_quantize", "delta", "dpo_cpo_loss_type",
    "efficient_long_context", "epochs", "epsilon", "epsilon_high", "fuse", "fuse_dequantize", "fuse_remove_adapters",
    "gradient_accumulation_steps", "group_size", "grpo_loss_type", "image_root", "importance_sampling_level", "judge",
    "judge_config", "judge_system", "list_reward_functions", "lm_studio_name", "load_in_4bits", "load_in_6bits",
    "load_in_8bits", "load_in_mxfp4", "max_completion_length", "micro_batch_size", "preference_score_feature",
    "reference_model_path", "rejected_feature", "reward_functions", "reward_functions_file", "reward_scaling",
    "reward_weights", "seq_step_size", "sft_loss_type", "system_feature", "temperature", "text_feature", "train_mode",
    "type_feature",
    # transformers, TRL, unsloth, axolotl and hosted trainers, which copy their arguments into the config.
    "adam_beta1", "adam_beta2", "adam_epsilon", "base_model_class", "base_model_revision", "bf16", "checkpoint",
    "checkpoint_id", "created_at", "dataset", "eval_steps", "fine_tune_id", "fine_tuned_at", "finetune_id", "fp16",
    "gradient_checkpointing", "job_id", "load_in_4bit", "load_in_8bit", "logging_steps", "loraplus_lr_embedding",
    "loraplus_lr_ratio", "lr_scheduler_type", "max_grad_norm", "max_length", "max_steps", "n_epochs",
    "num_epochs", "num_train_epochs", "output_dir", "per_device_eval_batch_size", "per_device_train_batch_size",
    "random_state", "run_id", "save_steps", "save_total_limit", "step", "torch_dtype", "trainer", "training_args",
    "training_file", "training_method", "unsloth_fixed", "unsloth_version", "use_gradient_checkpointing",
    "validation_file", "wandb_project", "warmup_ratio", "warmup_steps", "weight_decay",
})  # fmt: skip
"""Ignored wherever they stand, whatever their values are."""

METADATA_WORDS = frozenset({
    # A model card's, which hubs and their tools write.
    "author", "authors", "base_model", "base_model_name", "base_model_relation", "citation", "co2_eq_emissions",
    "contact", "copyright", "created", "created_by", "creator", "datasets", "date", "description", "display_name",
    "downloads", "eval_results", "format", "format_version", "framework", "homepage", "inference", "keywords",
    "language", "languages", "last_modified", "library_name", "license", "license_link", "license_name", "likes",
    "metadata", "metrics", "model-index", "model_author", "model_card", "model_creator", "model_id", "model_index",
    "model_name", "name", "namespace", "new_version", "notes", "organization", "owner", "pipeline_tag", "private",
    "repo_id", "repo_type", "sha", "source", "summary", "tags", "thumbnail", "timestamp", "title", "updated_at",
    "uploaded_by", "url", "version", "widget",
    # transformers', of the base model's config.json.
    "architectures", "auto_map", "bos_token_id", "dtype", "eos_token_id", "max_position_embeddings",
    "model_max_length", "model_type", "num_hidden_layers", "num_key_value_heads",
    "pad_token_id", "quantization", "quantization_config", "tokenizer_class", "transformers_version", "use_cache",
    "vocab_size",
})  # fmt: skip
"""PEFT drops them with a warning, and so does admission. None is a field of any of PEFT's methods (a test)."""
