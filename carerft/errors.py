"""The errors that a user can mend. Each names the thing that is wrong and what to do about it.

The command line prints these without a traceback; anything else is a defect of ours and keeps its traceback.
"""


class CareError(Exception):
    """Something outside the program is wrong: a config value, a file, a model, a dataset.

    `what` says what is wrong and names the key or file; `remedy` says what to write or run instead.
    """

    def __init__(self, what: str, remedy: str = ""):
        self.what, self.remedy = what, remedy
        super().__init__(f"{what}\n  {remedy}" if remedy else what)


class ConfigError(CareError):
    """A configuration key has a value that it cannot have, alone or beside the others."""


class DataError(CareError):
    """A dataset is absent, empty, malformed, or does not fit the model."""


class ShortageError(CareError):
    """Dynamic sampling has not found enough prompts from which something can be learned."""


class EngineError(CareError):
    """The rollout engine was lost, more often than it may be replaced; the policy is unharmed."""


class RunDirectoryError(CareError):
    """An output directory cannot be used: another configuration's, another process's, or unwritable."""


class NonFiniteError(CareError):
    """The loss or its gradient is not a finite number; the weights are as they were before the step."""
