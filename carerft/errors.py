"""Errors that the user can fix. Each names what is wrong and what to do about it.

The command line prints these without a traceback; any other exception is a defect of this package and keeps its own.
"""


class CareError(Exception):
    """Something outside the program is wrong: a config value, a file, a model, a dataset.

    `what` says what is wrong and names the key or file; `remedy` says what to write or run instead.
    """

    def __init__(self, what: str, remedy: str = ""):
        self.what, self.remedy = what, remedy
        super().__init__(f"{what}\n  {remedy}" if remedy else what)


class ConfigError(CareError):
    """A configuration key has a value that is not allowed, alone or together with other keys."""


class DataError(CareError):
    """A dataset is absent, empty, malformed, or does not fit the model."""


class ShortageError(CareError):
    """Dynamic sampling has not found enough prompts whose completions differ in reward."""


class EngineError(CareError):
    """The rollout engine failed more often than it may be restarted. The policy's weights are intact."""


class UserCodeError(CareError):
    """A grader or a reward of the user's own has failed on a completion. The policy's weights are intact."""


class RunDirectoryError(CareError):
    """An output directory cannot be used: another configuration or process uses it, or it is not writable."""


class NonFiniteError(CareError):
    """The loss or its gradient is not a finite number. The step was not taken."""


def reason(error: BaseException) -> str:
    """The first line of an exception's message, at most 200 characters; its type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
