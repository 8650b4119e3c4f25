"""rmtrain: train, score and compare reward models from one YAML recipe."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmtrain.serving.reward_function import RewardFunction

__version__ = "0.2.0"
__all__ = ["RewardFunction", "__version__"]


def __getattr__(name: str) -> Any:
    """`RewardFunction`, imported when it is asked for: with it comes torch."""
    if name == "RewardFunction":
        from rmtrain.serving.reward_function import RewardFunction

        return RewardFunction
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
