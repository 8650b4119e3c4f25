"""The optimiser's parameter groups: the head's own learning rate, and the settings of a resumed run."""

from typing import Any

from torch import nn

from rmtrain.model.forward import HEAD


def separate_head(optimizer: Any, model: nn.Module, learning_rate: float) -> None:
    """Put the score head into parameter groups of its own, with its own learning rate."""
    head = {id(p) for name, p in model.named_parameters() if f"{HEAD}." in name}
    for group in list(optimizer.param_groups):
        own = [p for p in group["params"] if id(p) in head]
        if own:
            group["params"] = [p for p in group["params"] if id(p) not in head]
            optimizer.add_param_group({**settings_of(group), "params": own, "lr": learning_rate})


def settings_of(group: dict[str, Any]) -> dict[str, Any]:
    """All that a parameter group holds besides its parameters."""
    return {key: value for key, value in group.items() if key != "params"}


def settings_by_group(optimizer: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The settings of all parameter groups, and of those that hold parameters: DeepSpeed leaves out the others."""
    groups = optimizer.param_groups
    return [settings_of(group) for group in groups], [settings_of(group) for group in groups if group["params"]]


def retune(
    optimizer: Any, scheduler: Any, before_loading: tuple[list[dict[str, Any]], list[dict[str, Any]]]
) -> tuple[float, float]:
    """Give an optimiser that was just loaded the run's own settings, and the learning rates of the run's own schedule.

    A checkpoint holds the settings of the run that wrote it. Where these are the same, nothing changes, to the bit.

    Args:
        optimizer: as accelerate or DeepSpeed has wrapped it.
        scheduler: a LambdaLR, at the step of the checkpoint.
        before_loading: the answer of `settings_by_group` for the new optimiser.

    Returns:
        The highest learning rate of the next step, by the checkpoint's settings and by the run's own.
    """
    settings = next(groups for groups in before_loading if len(groups) == len(optimizer.param_groups))
    before = max(group["lr"] for group in optimizer.param_groups)
    scheduler.base_lrs = [own["lr"] for own in settings]
    rates = [
        base * rate(scheduler.last_epoch) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, own, lr in zip(optimizer.param_groups, settings, rates, strict=True):
        group.update(own, lr=lr, initial_lr=own["lr"])
    scheduler._last_lr = rates
    return before, max(rates)
