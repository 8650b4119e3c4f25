"""Weights & Biases: the only module that imports wandb. Off unless asked, never prompts, sends no secrets."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from rmtrain.errors import InputError, first_line
from rmtrain.json_values import JsonObject
from rmtrain.recipe.schema import TrackingSection


def check_login(mode: str) -> None:
    """Check that an online run can log in before anything starts, since wandb would prompt later.

    Raises:
        InputError: online, and no key is set, or the server refuses it.
    """
    if mode != "online":
        return
    import wandb

    try:
        known = wandb.login(prompt=False)
    except wandb.Error as error:
        raise InputError(
            f"tracking.wandb is online, but wandb can't log in: {first_line(error)}",
            "check WANDB_API_KEY and the network, or set tracking.wandb: offline",
        ) from error
    if not known:
        raise InputError(
            "tracking.wandb is online, but no wandb key is set",
            "run `wandb login`, set WANDB_API_KEY, or set tracking.wandb: offline",
        )


class WandbLog(TrainerCallback):  # type: ignore[misc]
    """Logs every line of the run to wandb, under the run folder's name, which a resumed run continues."""

    def __init__(self, section: TrackingSection, folder: Path, config: JsonObject) -> None:
        self.section, self.folder, self.config = section, folder, config
        self._run: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Start or continue the wandb run on the main process."""
        if not state.is_world_process_zero or self.section.wandb == "off":
            return
        import wandb

        self._run = wandb.init(
            project=self.section.wandb_project,
            id=self.folder.name,
            name=self.folder.name,
            dir=self.folder,
            mode=self.section.wandb,
            config=self.config,
            resume="allow",
            settings=wandb.Settings(
                console="off", disable_git=True, save_code=False, silent=True, x_disable_machine_info=True
            ),
        )

    def on_log(
        self, args: TrainingArguments, state: TrainerState, *_: Any, logs: dict[str, float], **kwargs: Any
    ) -> None:
        """Log a line at its step."""
        if self._run is not None:
            self._run.log(dict(logs), step=state.global_step)

    def __enter__(self) -> "WandbLog":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Finish the wandb run, if one was started; as failed where an error ends it."""
        if self._run is not None:
            self._run.finish(exit_code=0 if error is None else getattr(error, "exit_code", 1))
