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
from kinemae.pretrain.builders import build_components, build_model
from kinemae.pretrain.checkpoint_encoder import describe_run_encoder
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.exported_model import save_encoder
from kinemae.pretrain.model.tokens import TokenGrid
from tests.benchmarks.learning.peer import PeerRecipe, train_peer
from tests.benchmarks.learning.probes import Settings, probe_encoder, score_floors
from tests.benchmarks.learning.settings import PEER
from tests.benchmarks.learning.units import FLOORS, PRETRAIN, RUN


def main() -> None:
    """Run the unit of the command line."""
    torch.set_num_threads(1)
    path = Path(sys.argv[1])
    unit = json.loads(path.read_text(encoding="utf-8"))
    config, places = unit["config"], unit["places"]
    if unit["kind"] == PRETRAIN:
        _pretrain(config, places)
        return
    shards = Path(places["shards"])
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
        _draw_encoder(base, Path(places["encoder"]))


def _draw_encoder(config: PretrainConfig, folder: Path) -> None:
    """Save an encoder with the initial weights of a run with this seed."""
    grid = TokenGrid.of(config.clip.frames, config.clip.size, config.model.shape().encoder.patch)
    torch.manual_seed(config.seed)
    encoder = build_model(config, grid, build_components(config, grid)).encoder
    save_encoder(folder, encoder, describe_run_encoder(config, encoder, {"steps": 0}))


if __name__ == "__main__":
    main()
