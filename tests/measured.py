"""What a model takes of memory, measured once for the processes of all tests: it takes as long as steps of training."""

import hashlib
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = "RMTRAIN_TESTS_MEASURED"  # a variable of the environment, which launched processes inherit


class Measured(dict[str, Any]):
    """In place of the dict in which `training.memory_plan` keeps what it measured, by all that it depends on."""

    def __contains__(self, key: object) -> bool:
        if not super().__contains__(key) and (file := self._file(str(key))).exists():
            super().__setitem__(str(key), pickle.loads(file.read_bytes()))
        return super().__contains__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        file = self._file(key)
        file.parent.mkdir(exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(pickle.dumps(value))
        temporary.replace(file)

    def _file(self, key: str) -> Path:
        """The file of a measurement, which the place of the model's folder does not matter to."""
        settings = re.sub(r"\bname='[^']*'", "", key)
        return Path(os.environ[FOLDER]) / hashlib.sha256(settings.encode()).hexdigest()


def share() -> None:
    """Have this process share what it measures, once it has imported what measures."""
    plan = sys.modules.get("rmtrain.training.memory_plan")
    if plan is not None and type(plan._MEASURED) is dict and FOLDER in os.environ:
        plan._MEASURED = Measured()  # type: ignore[attr-defined]
