"""The Trainer's arguments: what rmtrain does itself is switched off there."""

from pathlib import Path

import torch
from trl import RewardConfig

from rmtrain.model.recompute import checkpointing_options
from rmtrain.recipe.schema import Recipe
from rmtrain.training.engines import engine_arguments
from rmtrain.training.plan import TrainingPlan, whole_steps


def training_arguments(recipe: Recipe, plan: TrainingPlan, folder: Path, strategy: str) -> RewardConfig:
    """Arguments of a planned run.

    Args:
        recipe: of the run.
        plan: its steps and micro-batches.
        folder: the run folder, whose `checkpoints` the Trainer writes to.
        strategy: none, ddp, zero2, zero3 or fsdp.

    Raises:
        InputError: these processes can't run the recipe's engine.
    """
    optim, cuda = recipe.optim, torch.cuda.is_available()
    optimizers = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_bnb_8bit"}
    if not cuda:  # where all memory is the host's there is nothing to page
        optimizers |= {"paged_adamw_8bit": "adamw_bnb_8bit", "paged_adamw_32bit": "adamw_torch_fused"}
    checkpointing, rank = optim.gradient_checkpointing, recipe.lora.rank if recipe.lora else 0
    reentrant = strategy == "zero3" and rank > 0
    schedules = {"constant": "constant_with_warmup"}
    made = RewardConfig(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=1,  # the plan holds all epochs
        per_device_train_batch_size=1,  # a planned micro-batch
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=optim.learning_rate,
        lr_scheduler_type=schedules.get(optim.schedule, optim.schedule),
        warmup_steps=whole_steps(optim.warmup_ratio * len(plan.steps)),
        optim=optimizers.get(optim.optimizer, optim.optimizer),
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        seed=recipe.run.seed,
        use_cpu=not cuda,
        bf16=False,  # the model enters autocast itself
        fp16=recipe.model.dtype == "float16",  # for the loss scaler
        gradient_checkpointing=checkpointing != "none",
        gradient_checkpointing_kwargs=(
            checkpointing_options(checkpointing, rank, reentrant) if checkpointing != "none" else None
        ),
        activation_offloading=optim.activation_offloading and cuda,  # without a GPU they are where they would go
        logging_steps=recipe.tracking.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would log 0 for a loss that is not finite
        save_strategy="steps",
        save_steps=2**31 - 1,  # Schedule decides
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        max_length=None,
        disable_dropout=False,
        remove_unused_columns=False,
        average_tokens_across_devices=False,
        dataloader_num_workers=2 if cuda else 0,
        dataloader_pin_memory=cuda,
        **engine_arguments(recipe, strategy, plan.processes),
    )
    made._n_gpu = min(made.n_gpu, 1)  # a process has one GPU; of several it sees, torch's DataParallel would take all
    if not cuda:
        made._setup_devices = torch.device("cpu")  # not accelerate's cpu:0: transformers 5.17 can't resume there
    return made
