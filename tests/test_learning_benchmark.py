"""The scoreboard of pretraining methods: equal FLOPs, units that are never repeated, tables."""

import json
import shutil
import sys
import threading
import time
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kinemae.__main__ import main
from kinemae.data_tools.config import load_config
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.training_clips import TrainingClips
from kinemae.pretrain.builders import build_components, build_model, token_selection
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.cost import _clips, training_flops
from kinemae.pretrain.exported_model import load_encoder
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.runtime.settings import OptimConfig
from tests.benchmarks.learning import units
from tests.benchmarks.learning.execute import execute
from tests.benchmarks.learning.peer import (
    PeerRecipe,
    build_peer,
    peer_flops,
    peer_loss,
    steps_done,
    train_peer,
)
from tests.benchmarks.learning.plan import Wanted, estimate_s, finished, plan_floors, plan_runs
from tests.benchmarks.learning.report import Row, Table
from tests.benchmarks.learning.settings import RANDOM, Board, open_tree, parse_folds
from tests.benchmarks.learning.units import Interrupted, Runner, Unit, command, describe, record
from tests.sharding import shard, write_clip

RECIPE = PeerRecipe(
    mask_ratio=0.75, decoder_width=16, decoder_depth=1, decoder_heads=2,
    optim=OptimConfig(lr=1e-3, clip_norm=0.0), augment=AugmentConfig(),
)  # fmt: skip
SMALL = [
    *("clip.frames=4", "clip.size=16", "clip.sampling=uniform", "model.size=tiny", "model.patch_size=8"),
    *("model.width=24", "model.heads=2", "model.depth=1", "model.decoder_width=12", "model.decoder_depth=1"),
    *("batch={global_clips: 4, clips_per_device: 4}", "data.shards=unused", "run_dir=unused"),
    *("masking={name: uniform, args: {ratio: 0.5}}", "steps=4", "model.decoder=self"),
]


def counted(step):
    """FLOPs of a forward pass, and of a forward and backward pass, as PyTorch counts them."""
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        step()
    with FlopCounterMode(display=False) as both:
        step().backward()
    return forward.get_total_flops(), both.get_total_flops()


def our_step(config, clips):
    grid = TokenGrid.of(config.clip.frames, config.clip.size, config.model.shape().encoder.patch)
    components = build_components(config, grid)
    model = build_model(config, grid, components)
    batch = _clips(config, token_selection(config, grid, components), 0, clips)
    return lambda: model(batch, ClipRandom(0, batch.clip_index_B))["loss"].mean()


def peer_step(config, clips):
    grid = TokenGrid.of(config.clip.frames, config.clip.size, config.model.shape().encoder.patch)
    model = build_peer(config, RECIPE)
    clip_BCTHW = torch.zeros(clips, 3, config.clip.frames, config.clip.size, config.clip.size)
    target_BM = torch.tensor([[0, 1, 2, 4, 5, 6]] * clips)
    return lambda: peer_loss(model, clip_BCTHW.byte(), target_BM, grid.tokens)


@pytest.mark.parametrize(("step", "flops"), [
    (our_step, training_flops), (peer_step, lambda config: peer_flops(config, RECIPE)),
])  # fmt: skip
def test_both_models_are_counted_by_one_rule_that_is_close_to_the_real_backward_pass(step, flops):
    config = load_config(PretrainConfig, None, SMALL)
    forward, both = counted(step(config, 4))
    assert 4 * flops(config) == 3 * forward
    # The patch embedding has no gradient of its input; fused attention repeats its forward pass.
    assert 0.8 < both / (3 * forward) < 1.2


def board(work, tree=None, folds=None):
    tree = tree or open_tree()
    made = Board(work=work, tree=tree, folds=folds or [["a"], ["b"]], fingerprint="0123")
    made.base_file.write_text(json.dumps(tree["base"]))
    return made


@pytest.mark.nightly
@pytest.mark.slow
def test_every_method_of_the_file_runs_at_equal_flops(tmp_path):
    found = board(tmp_path)
    names, budget = list(found.tree["methods"]), 2e12
    wanted = Wanted(methods=names, budgets=[budget], seeds=[0, 1], attentive=names, finetune=names)
    runs = plan_runs(found, wanted)
    assert len(runs) == 2 * len(names)
    for run in runs:
        if run.method.kind != RANDOM:
            own = budget * run.method.student_fraction
            assert own - run.step_flops < run.steps * run.step_flops <= own
    labels = [unit.label for run in runs for unit in (*run.units, *run.more)]
    assert len(set(labels)) == len(labels)


def test_a_changed_method_is_a_new_unit_and_the_others_keep_theirs(tmp_path):
    def labels(tree):
        runs = plan_runs(board(tmp_path, tree), Wanted(methods=["a", "b"], budgets=[1e12], seeds=[0]))
        return [unit.label for run in runs for unit in run.units]

    tree = open_tree()
    tree["methods"] = {"a": {"kind": "random"}, "b": {"kind": "random"}}
    first = labels(tree)
    tree["methods"]["a"] = {"kind": "random", "revision": 1}
    assert labels(tree)[:2] != first[:2] and labels(tree)[2:] == first[2:]
    tree["probe"] = {"c": [1.0], "max_iter": 10}
    changed = labels(tree)
    assert changed[2] == first[2] and changed[3] != first[3]


@pytest.mark.parametrize(("change", "message"), [
    ({"methods": ["unifrm"]}, "--methods: expected names of methods.yaml .*, got unifrm"),
    ({"budgets": [1e3]}, "--flops: expected at least 1.82e.10, one step of demo, got 1e.03"),
])  # fmt: skip
def test_a_wrong_option_is_named(change, message, tmp_path):
    wanted = Wanted(methods=["demo"], budgets=[1e12], seeds=[0])
    with pytest.raises(ValueError, match=message):
        plan_runs(board(tmp_path), replace(wanted, **change))


def test_a_wrong_entry_of_the_file_is_named(tmp_path):
    tree = open_tree()
    tree["methods"]["wrong"] = {"kind": "random", "lr": 1.0}
    with pytest.raises(ValueError, match=r"methods.wrong: expected kind .*, got kind random with \['lr'\]"):
        board(tmp_path, tree).method("wrong")


def test_folds_are_whole_groups(tmp_path):
    for name in ("A_1", "A_2", "B_1", "C_1"):
        (tmp_path / "walk").mkdir(exist_ok=True)
        (tmp_path / "walk" / f"{name}.mp4").touch()
    assert parse_folds("2", tmp_path) == [["A", "C"], ["B"]]
    assert parse_folds("A B,C", tmp_path) == [["A", "B"], ["C"]]
    for given, message in (("4", "expected 2 to 3 folds"), ("A,D", "got D"), ("A,", "got an empty fold")):
        with pytest.raises(ValueError, match=f"--folds: .*{message}"):
            parse_folds(given, tmp_path)


def small_board(tmp_path):
    """Sharded clips of two classes and three groups, and a board with a small base."""
    lines = ["path,label,group,split"]
    for number, (kind, group, take) in enumerate(product(("walk", "run"), "ABC", "01")):
        path = tmp_path / "videos" / kind / f"{group}_{take}.mp4"
        write_clip(path, number, frames=4)
        lines.append(f"{path},{kind},{group},train")
    (tmp_path / "all.csv").write_text("\n".join(lines))
    assert shard(tmp_path / "all.csv", tmp_path / "all", "layout.name=h264") == 0
    tree = open_tree()
    tree["base"] = {
        "clip": {"frames": 4, "size": 16, "sampling": "uniform"},
        "batch": {"global_clips": 4, "clips_per_device": 4},
        "model": {"size": "tiny", "patch_size": 8, "width": 32, "heads": 2, "depth": 1, "decoder_width": 12},
        "masking": {"name": "uniform", "args": {"ratio": 0.5}},
        "engine": {"cpu_threads": 1, "device": "cpu"},
        "data": {"num_workers": 0},
        "save_every_steps": 2,
    }
    tree["transformers"] |= {"mask_ratio": 0.75, "decoder_width": 12, "decoder_depth": 1}
    tree["attentive"] = ["grid={lr: [0.001], weight_decay: [0.0]}", "train.min_steps=2", "train.epochs=1"]
    tree["methods"] = {"random": {"kind": "random"}, "transformers": {"kind": "transformers"}, "ours": []}
    return board(tmp_path, tree, [["A"], ["B"], ["C"]])


@pytest.mark.slow
def test_random_weights_and_transformers_are_probed_and_stand_in_the_table(tmp_path):
    found = small_board(tmp_path)
    everything = ["random", "transformers"]
    budget = 3.5 * found.step_flops(found.method("transformers"))
    wanted = Wanted(
        methods=everything, budgets=[budget], more_budgets=[budget], seeds=[0, 1], attentive=everything
    )
    runs, floors = plan_runs(found, wanted), plan_floors(found)
    cost = {"cpu_s": 60.0, "wall_s": 61.0, "peak_gb": 1.0}
    for unit in [floors, *(unit for run in runs for unit in (*run.units, *run.more))]:
        execute(describe(unit, tmp_path))
        record(unit, tmp_path, cost)
    table = Table.of(tmp_path, floors, runs)
    assert [(row.method, row.steps, len(row.costs)) for row in table.rows] == [
        ("random", 1, 2),
        ("transformers", 3, 2),
    ]
    assert list(table.floors) == ["floor: first frame", "floor: all pixels", "floor: frame differences"]
    poolings = ["frozen, mean", "frozen, statistics", "frozen, slices"]
    for row in table.rows:
        assert list(row.scores) == [*poolings, "attentive"]
        assert all(len(folds) == 3 for seeds in row.scores.values() for folds in seeds.values())
        assert row.scores["frozen, slices"].keys() == {0, 1}
    assert "| transformers | 2 | 3 | 1.0 | 1.0 | 1.00 |" in table.markdown()
    assert estimate_s(runs[-1].units[0], finished(tmp_path)) == 60.0
    assert "method minus random" in Table.of(tmp_path, floors, runs, "random").markdown()
    json.dumps(table.as_json())


@pytest.mark.parametrize("kind", [0, 1])
def test_our_commands_are_accepted(kind, tmp_path, capsys):
    found = small_board(tmp_path)
    wanted = Wanted(
        methods=["random", "ours"], budgets=[1e9], more_budgets=[1e9], seeds=[0], finetune=["random", "ours"]
    )
    random, ours = plan_runs(found, wanted)
    execute(describe(random.units[0], tmp_path))
    for split in ("train", "validation"):
        shutil.copytree(found.shards, found.fold_shards(["A"]) / split)
    few = ["data.leaks=warn", "batch={global_clips: 4, clips_per_device: 4}"]
    commands = [command(ours.units[0], tmp_path), [*command(random.more[0], tmp_path), *few]]
    assert main([*commands[kind][3:], "--dry-run"]) == 0
    assert "steps" in capsys.readouterr().out


def test_a_killed_run_of_transformers_ends_the_same(tmp_path, monkeypatch):
    found = small_board(tmp_path)
    recipe = PeerRecipe.of(found.method("transformers").recipe)
    config = replace(found.config(found.method("transformers")), steps=4)
    train_peer(config, recipe, tmp_path / "unbroken")
    read = TrainingClips.batch

    def stop_at_the_last_step(clips, numbers):
        if numbers.start == 12:
            raise KeyboardInterrupt
        return read(clips, numbers)

    monkeypatch.setattr(TrainingClips, "batch", stop_at_the_last_step)
    with pytest.raises(KeyboardInterrupt):
        train_peer(config, recipe, tmp_path / "killed")
    monkeypatch.undo()
    assert steps_done(tmp_path / "killed") == 2
    train_peer(config, recipe, tmp_path / "killed")
    one, other = (load_encoder(tmp_path / name / "encoder")[0] for name in ("unbroken", "killed"))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def python(text):
    """A command that runs Python code in a few milliseconds."""
    return lambda unit, work: [sys.executable, "-c", f"folder = {str(unit.folder(work))!r}\n{text}"]


UNIT = Unit(kind="frozen", method="ours", flops=1e9, seed=0, config={"c": [1.0]})


def test_a_finished_unit_is_not_repeated(tmp_path, monkeypatch):
    scores = "open(folder + '/scores.json', 'w').write('{\"scores\": {\"mean\": {\"top1\": [50.0]}}}')"
    monkeypatch.setattr(units, "command", python(scores))
    assert Runner(tmp_path).run(UNIT)
    result = UNIT.result(tmp_path)
    assert result["scores"] == {"mean": {"top1": [50.0]}} and result["cost"]["cpu_s"] >= 0
    monkeypatch.setattr(units, "command", python("raise SystemExit(1)"))
    assert Runner(tmp_path).run(UNIT)


def test_a_failed_unit_names_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "command", python("raise SystemExit(3)"))
    with pytest.raises(RuntimeError, match=r"frozen-ours-1e.09-s0-\w+: exit code 3; see .*log.txt"):
        Runner(tmp_path).run(UNIT)
    assert UNIT.result(tmp_path) is None


def test_a_stopped_unit_leaves_no_result_and_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "command", python("import time; time.sleep(60)"))
    runner = Runner(tmp_path)

    def stop():
        while not runner.running:
            time.sleep(0.01)
        assert not Runner(tmp_path).run(UNIT), "it is locked"
        runner.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Interrupted):
        runner.run(UNIT)
    thread.join()
    assert UNIT.result(tmp_path) is None and not runner.running


def test_differences_are_paired_by_seed_and_fold():
    def row(scores):
        return Row(method="a", flops=1e9, steps=1, costs=[], scores={"mean": scores})

    one = row({0: [50.0, 60.0], 1: [52.0, 64.0]})
    other = row({0: [40.0, 61.0], 2: [0.0, 0.0]})
    assert one.mean("mean") == (56.5, pytest.approx(2.12, abs=0.01))
    assert one.difference(other, "mean") == {
        "mean": 4.5,
        "deviation": pytest.approx(7.78, abs=0.01),
        "higher": 1,
        "pairs": 2,
    }
    assert one.difference(row({}), "mean") is None
