"""--reference and --reference-free: a language model as the judge."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rmtrain.cli.checkpoints import Chosen
from rmtrain.errors import InputError

if TYPE_CHECKING:
    from rmtrain.model.policy import Policy

ReferenceOption = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="REF",
        help="CKPT is a policy trained by DPO: score by log-probabilities against this reference model.",
    ),
]
ReferenceFreeOption = Annotated[
    Literal["avg", "sum", "norm"] | None,
    typer.Option(
        help="CKPT is a policy: score by its log-probabilities alone, their mean, their sum or their negative L2 norm."
    ),
]


def as_policy(chosen: Chosen, reference: str | None, reference_free: str | None) -> Chosen:
    """The checkpoint with a name, for the folder of its results, that says what it is compared with.

    Raises:
        InputError: both options are given, or one that is for reward models.
    """
    if (reference is not None or reference_free is not None) and (
        chosen.prompt is not None or chosen.label is not None
    ):
        raise InputError("--prompt and --label are for reward models, not for policies", "leave them out")
    if reference is not None and reference_free is not None:
        raise InputError("--reference and --reference-free exclude each other", "leave one of them out")
    if reference is not None:
        return chosen._replace(name=f"{chosen.name}-against-{reference.strip('/.').replace('/', '--')}")
    return chosen._replace(name=f"{chosen.name}-ref-free-{reference_free}") if reference_free else chosen


def load_policy_of(
    chosen: Chosen, reference: str | None, reference_free: Literal["avg", "sum", "norm"] | None
) -> "Policy | None":
    """The checkpoint as a policy, where one of the options says that it is one."""
    if reference is None and reference_free is None:
        return None
    from rmtrain.model.devices import process_state
    from rmtrain.model.policy import load_policy

    return load_policy(chosen.where, reference, reference_free or "sum", process_state().device)
