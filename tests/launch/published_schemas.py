"""Kubernetes objects held against the schemas that their projects publish, as their own Python models.

kubeflow-trainer-api 2.3 is generated from Kubeflow Trainer's OpenAPI file: TrainJob, TrainingRuntime, JobSet
and the parts of Kubernetes that they hold (Job, Pod, ...). What it does not know it leaves out, so what comes
back is compared with what went in. kubeflow-training 1.9 is the same for PyTorchJob, with the models of the
`kubernetes` client.
"""

import re
from typing import Any

from kubeflow.training import models as training
from kubeflow_trainer_api import models as trainer

_BASIC = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}


def check(manifest: dict[str, Any]) -> None:
    """Compare an object with its published schema.

    Raises:
        ValueError: it has keys or values that the schema has not; pydantic's own error is one too.
    """
    kind = manifest["kind"]
    if kind in ("ConfigMap", "PyTorchJob"):
        of = {"ConfigMap": "V1ConfigMap", "PyTorchJob": "KubeflowOrgV1PyTorchJob"}[kind]
        _check_value(manifest, of, kind)
        for role, replica in manifest.get("spec", {}).get("pytorchReplicaSpecs", {}).items():
            _check_model(trainer.IoK8sApiCoreV1PodSpec, replica["template"]["spec"], f"PyTorchJob {role}")
        return
    prefix = "JobsetV1alpha2" if kind == "JobSet" else "TrainerV1alpha1"
    _check_model(getattr(trainer, prefix + kind), manifest, kind)


def _check_model(model: Any, given: dict[str, Any], where: str) -> None:
    known = model.from_dict(given).to_dict()
    if known != given:
        raise ValueError(f"{where}: the schema knows {known}, given was {given}")


def _check_value(given: Any, of: str, where: str) -> None:
    """One value of the older generated models, which check no types by themselves."""
    container = re.fullmatch(r"(list\[|dict\(str, )(.*)[\])]", of)
    if container:
        entries = given.items() if isinstance(given, dict) else enumerate(given)
        for key, entry in entries:
            _check_value(entry, container[2], f"{where}.{key}")
    elif of in _BASIC:
        if not isinstance(given, _BASIC[of]) or (of == "int" and isinstance(given, bool)):
            raise ValueError(f"{where} must be of type {of}, got {given!r}")
    else:
        model = getattr(training, of)
        names = {json: name for name, json in model.attribute_map.items()}
        for key, entry in given.items():
            if key not in names:
                raise ValueError(f"{where} has no {key}")
            _check_value(entry, model.openapi_types[names[key]], f"{where}.{key}")
        model(**{names[key]: entry for key, entry in given.items()})  # says what is required and missing
