"""What is said to a user who looks at nothing else."""

from resnet_ops.training.observer import Observer


class Notes(Observer):
    """An observer that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def warn(self, message: str) -> None:
        self.notes.append(message)
