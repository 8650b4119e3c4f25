"""The judges of `rmtrain curate`: given reward models, or models trained on folds, each run by its own command."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rmtrain.errors import DataError, InputError, Interrupted, RunFailedError
from rmtrain.files import write_atomic
from rmtrain.runs import locate_model

if TYPE_CHECKING:
    from rmtrain.data.judged import Judge
    from rmtrain.data.types import PreferenceGroup
    from rmtrain.display import Display
    from rmtrain.recipe.schema import Recipe


@dataclass(frozen=True)
class Judges:
    """The working folder of a curation: its rows, the models that it trains, and the rewards of the judges."""

    folder: Path
    groups: "Sequence[PreferenceGroup]"
    display: "Display"

    def train(self, recipe: "Recipe", folds: Sequence[int]) -> list[str]:
        """Train a model on each fold as `rmtrain train` does; returns the run folders.

        Finished runs are reused; interrupted ones are resumed.
        """
        return [self._fold(recipe, number, folds) for number in range(max(folds) + 1)]

    def judge(self, ckpt: str, groups: "Sequence[PreferenceGroup]") -> "Judge":
        """The rewards of a model for groups, from `rmtrain score`.

        Raises:
            DataError: its chat template refuses more than a fifth of them.
        """
        from rmtrain.data.judged import Judge

        rows = self._write(groups, "pairs")
        name = hashlib.sha256(f"{rows.name} {_state(locate_model(ckpt)[0])}".encode()).hexdigest()[:12]
        output = self.folder / f"scored-{name}.jsonl"
        if not output.exists():
            self.display.note(f"judge: {ckpt}")
            reading = ("--row-schema", "completions", "--skip-refused")
            self._command("score", str(rows), "--ckpt", ckpt, "--output", str(output), *reading)
        with open(output, encoding="utf-8") as lines:
            scored = [json.loads(line) for line in lines]
        judge = Judge(
            ckpt,
            {row["id"]: row["rewards"] for row in scored if row["rewards"] is not None},
            {row["id"]: row["refused"] for row in scored if row["rewards"] is None},
        )
        _require_most(judge, len(scored))
        return judge

    def _fold(self, recipe: "Recipe", number: int, folds: Sequence[int]) -> str:
        from rmtrain.recipe.load import dump_recipe
        from rmtrain.training.sweep import begun_run, finished_run

        own = [group for group, fold in zip(self.groups, folds, strict=True) if fold == number]
        name = f"fold-{number}"
        fold_recipe, path = self._fold_recipe(recipe, self._write(own, name), name), self.folder / f"{name}.yaml"
        write_atomic(path, dump_recipe(fold_recipe))
        if (run := finished_run(fold_recipe, self.folder)) is None:
            self.display.note(f"fold {number + 1} of {max(folds) + 1}: {len(own)} groups")
            begun = begun_run(fold_recipe, self.folder)
            self._command("train", *(["--resume", str(begun)] if begun else [str(path)]), "--json")
            run = finished_run(fold_recipe, self.folder)
        if run is None:
            raise RunFailedError(f"the model of fold {number + 1} was trained, and its run is gone from {self.folder}")
        return str(run)

    def _fold_recipe(self, recipe: "Recipe", rows: Path, name: str) -> "Recipe":
        """The recipe for a fold's model: the same training, only on the rows of the fold, without evaluation."""
        from rmtrain.data.types import has_votes, has_weights

        data: dict[str, object] = {
            "source": {"train": str(rows)},
            "splits": {"train": "train"},
            "preferences": "as_given",
        }
        data |= {"votes": "votes" if has_votes(self.groups) else None}
        data |= {"preference_weights": "weights" if has_weights(self.groups) else None}
        data |= {key: getattr(recipe.data, key) for key in ("max_length", "over_length")}
        values = recipe.model_dump(mode="json")
        values["data"] = data
        values["evaluation"] |= {"every": 0.0, "select": "last", "stop_after": None, "splits": []}
        values["run"] |= {"folder": str(self.folder), "name": name}
        return type(recipe).model_validate(values)

    def _write(self, groups: "Sequence[PreferenceGroup]", name: str) -> Path:
        """Write groups to a source named by the digest of its content, unless that file exists."""
        from rmtrain.data.judged import source_row
        from rmtrain.data.types import has_votes, has_weights

        soft, weighted = has_votes(self.groups), has_weights(self.groups)
        text = "".join(json.dumps(source_row(group, soft, weighted), ensure_ascii=False) + "\n" for group in groups)
        path = self.folder / f"{name}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:12]}.jsonl"
        if not path.exists():
            write_atomic(path, text)
        return path

    def _command(self, *arguments: str) -> None:
        """Run a command of rmtrain; its standard error is shown.

        Raises:
            InputError: the command refused its input.
            Interrupted: it was interrupted; running curate again continues there.
            RunFailedError: it failed.
        """
        from rmtrain.training.sweep import Workers

        code = Workers(1, (), self.folder, self.display.note).run(arguments, arguments[0])
        if code == InputError.exit_code:
            raise InputError(f"rmtrain {arguments[0]} refused its input", "see the lines above")
        if code == Interrupted.exit_code:
            raise Interrupted("stopped", "run the same command again to continue")
        if code:
            raise RunFailedError(f"rmtrain {arguments[0]} failed", "see the lines above")


def _require_most(judge: "Judge", rows: int) -> None:
    """Raise a DataError that names the first refused row, if the judge refuses too many."""
    from rmtrain.data.parse import MAX_MALFORMED

    if len(judge.refused) > MAX_MALFORMED * rows:
        first, why = next(iter(judge.refused.items()))
        raise DataError(
            f"judge {judge.name}: {len(judge.refused)} of {rows} rows are refused; the first: row {first}: {why}",
            "leave this judge out, or correct these rows",
        )


def _state(where: str) -> str:
    """Identifies a checkpoint's present weights: their digest for a folder, otherwise the hub id."""
    from rmtrain.training.resume import sampled_digest

    return sampled_digest(Path(where)) if Path(where).is_dir() else where
