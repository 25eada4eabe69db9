"""`torch.hub` loads a model through `hubconf.py`."""

from pathlib import Path

import torch

from tests.finetune.test_model_file import saved


def test_torch_hub_loads_a_model(repo: Path, tmp_path: Path) -> None:
    trained = saved(tmp_path)
    model = torch.hub.load(str(repo), "video_model", str(tmp_path), source="local", dtype=torch.float64)
    clips = torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8)
    assert torch.allclose(model.scores(clips), trained.output(clips)[0].double().softmax(dim=1), atol=1e-5)
