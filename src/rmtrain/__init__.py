"""rmtrain: train, score and compare reward models from one YAML recipe."""

TYPE_CHECKING = False  # not typing's: this file runs before modules of the current folder are kept out
if TYPE_CHECKING:
    from rmtrain.serving.reward_function import RewardFunction

__version__ = "0.2.0"
__all__ = ["RewardFunction", "__version__"]


def __getattr__(name: str) -> object:
    """`RewardFunction`, imported when it is asked for: with it comes torch."""
    if name == "RewardFunction":
        from rmtrain.serving.reward_function import RewardFunction

        return RewardFunction
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
