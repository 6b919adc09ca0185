"""TrainingDiverged: the error of a run whose numbers are no longer finite."""


class TrainingDiverged(RuntimeError):
    """Loss or parameters became NaN or infinite; the message names task, epoch and step."""
