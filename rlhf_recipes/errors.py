"""The errors that a run ends with and a user can mend, where none of Python's own says it."""


class PushError(OSError):
    """A push failed; the message says why and what to do. The local files are as they were."""


class ReportError(ValueError):
    """The report cannot be made; the message names the file, what is wrong in it and what to do."""


class RewardError(RuntimeError):
    """A reward raised, or returned something that is no reward. The message names it and, where known, the row."""


class RewardValueError(RewardError, ValueError):
    """A reward, or a weight, came to be what it cannot: a wrong number of values, or one that is no finite number."""
