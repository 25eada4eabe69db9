"""Models of fine-tuning for tests."""

from kinemae.finetune.tasks.classification import Classification


def classification(classes, **args):
    """A classification that knows its classes, "0", "1", ..."""
    task = Classification(**args)
    task.load_state({"classes": [str(number) for number in range(classes)]})
    return task
