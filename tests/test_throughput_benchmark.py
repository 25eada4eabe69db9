"""The throughput benchmark measures every section, here with tiny models on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_section_is_measured(repo: Path, tmp_path: Path, synth_shards: Path) -> None:
    result = tmp_path / "result.json"
    words = ["--tiny", "--clips", "1", "--json", str(result), "--shards", str(synth_shards / "unlabelled")]
    command = [sys.executable, "-m", "tests.benchmarks.throughput", *words]
    ran = subprocess.run(command, cwd=repo, env=os.environ, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(result.read_text())
    [device] = found["device"]
    assert device["product_tflops"] > 0 and device["copy_gb_s"] > 0
    rows = {(row["model"], row["clips"], row["compiled"]): row for row in found["models"]}
    assert len(rows) == 5 * 2
    for row in [*rows.values(), *found["engine"]]:
        assert 0 < row["low"] <= row["seconds"] <= row["high"] and row["mfu_of_product"] > 0
        assert row["tflops"] == pytest.approx(row["clip_gflops"] * row["clips_per_s"] / 1000)
    flops = [row["clip_gflops"] for (_, _, is_compiled), row in rows.items() if not is_compiled]
    assert flops == sorted(flops, reverse=True)  # the peer embeds all tokens; then ever fewer targets
    loops = [row["loop"] for row in found["engine"]]
    assert loops == ["plain loop", *(f"engine, ZeRO {stage}" for stage in range(4))]
    [run] = found["run"]
    assert run["clips_per_s"] > 0 and 0 <= run["data_wait_fraction"] < 1
    assert "run, demo" in ran.stdout and "omitted" not in ran.stdout
