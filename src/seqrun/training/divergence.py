"""TrainingDiverged: the error raised when a loss or a parameter is not finite."""


class TrainingDiverged(RuntimeError):
    """The loss or a parameter became NaN or infinite; the message names task, epoch and step."""
