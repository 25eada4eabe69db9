"""Kubernetes objects compared with the schemas that their projects publish, as Python models.

kubeflow-trainer-api 2.3 is generated from Kubeflow Trainer's OpenAPI file: TrainJob, TrainingRuntime, JobSet
and the parts of Kubernetes that they contain (Job, Pod, ConfigMap). The models drop unknown keys, so the
result is compared with the input.
"""

from typing import Any

from kubeflow_trainer_api import models

_PREFIXES = {"ConfigMap": "IoK8sApiCoreV1", "JobSet": "JobsetV1alpha2"}


def check(manifest: dict[str, Any]) -> None:
    """Compare an object with its published schema.

    Raises:
        ValueError: a key or a value is not in the schema; pydantic's own error is one too.
    """
    kind = manifest["kind"]
    model = getattr(models, _PREFIXES.get(kind, "TrainerV1alpha1") + kind)
    known = model.from_dict(manifest).to_dict()
    if known != manifest:
        raise ValueError(f"{kind}: the schema knows {known}, given was {manifest}")
