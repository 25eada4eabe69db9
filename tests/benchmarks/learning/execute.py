"""The process of a unit: `python -m tests.benchmarks.learning.execute UNIT.json`.

It writes `scores.json` beside the file, or an encoder to `run/encoder`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from kinemae.data_tools.config import load_config
from kinemae.data_tools.files import atomic_write_text
from kinemae.pretrain.config import PretrainConfig
from tests.benchmarks.learning.peer import PeerRecipe, train_peer
from tests.benchmarks.learning.probes import Settings, attend_encoder, probe_encoder, score_floors
from tests.benchmarks.learning.random_weights import draw_encoder
from tests.benchmarks.learning.settings import PEER
from tests.benchmarks.learning.units import ATTENTIVE, FLOORS, PRETRAIN, RUN


def execute(path: Path) -> None:
    """Run the unit of a description."""
    unit = json.loads(path.read_text(encoding="utf-8"))
    config, places = unit["config"], unit["places"]
    if unit["kind"] == PRETRAIN:
        _pretrain(config, places)
        return
    shards = Path(places["shards"])
    if unit["kind"] == ATTENTIVE:
        scores = attend_encoder(Path(places["encoder"]), shards, config["folds"], config["arguments"])
    else:
        settings = Settings(**{key: config[key] for key in ("folds", "c", "max_iter", "seed")})
        if unit["kind"] == FLOORS:
            scores = score_floors(shards, settings)
        else:
            scores = probe_encoder(Path(places["encoder"]), shards, settings)
    atomic_write_text(path.with_name("scores.json"), json.dumps({"scores": scores}, indent=1) + "\n")


def _pretrain(config: dict[str, Any], places: dict[str, str]) -> None:
    """Train transformers' model, or draw random weights."""
    given = [*config["arguments"], f"data.shards={places['shards']}", f"run_dir={places['folder']}/{RUN}"]
    base = load_config(PretrainConfig, places["base"], given)
    if config["method"] == PEER:
        train_peer(base, PeerRecipe.of(config["recipe"]), Path(base.run_dir))
    else:
        draw_encoder(base, Path(places["encoder"]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    execute(Path(sys.argv[1]))
