"""`kinemae.clips`: the order of the run in any training loop, on any number of processes and workers."""

import os
import subprocess
import sys
from itertools import chain, islice

import pytest
import torch
from torch import distributed as dist
from torch.utils.data import DataLoader

import kinemae
from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.augment import NO_AUGMENTATION, AugmentConfig
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.training_clips import TrainingClips

CLIP = ClipConfig(frames=2, stride=4, size=16)


@pytest.fixture(scope="module")
def shards(synth_shards):
    return synth_shards / "validation"  # 24 videos


def positions(dataset):
    return [batch["position"].tolist() for batch in dataset]


def test_batches_are_those_of_a_training_run(shards):
    batches = list(kinemae.clips(shards, CLIP, batch_size=4, seed=3, views=2))
    reference = TrainingClips(open_index(shards), clip=CLIP, augment=AugmentConfig(), seed=3, views=2)
    assert len(batches) == 12  # 24 videos of two views
    for step in (0, 7):
        expected = reference.batch(range(4 * step, 4 * step + 4))
        assert batches[step]["clip"].equal(expected.clip_BCTHW)
        assert batches[step]["label"].equal(expected.label_B)
        assert batches[step]["time_s"].equal(expected.time_BT)
        assert batches[step]["key"] == list(expected.keys)
    centre = next(iter(kinemae.clips(shards, CLIP, seed=3, augment=False)))
    plain = TrainingClips(open_index(shards), clip=CLIP, augment=NO_AUGMENTATION, seed=3)
    assert centre["clip"].equal(plain.batch(range(1)).clip_BCTHW[0])


def test_an_iteration_is_a_pass_and_the_next_one_continues(shards):
    dataset = kinemae.clips(shards, CLIP, batch_size=5)
    first, second = positions(dataset), positions(dataset)
    assert len(dataset) == len(first) == 4
    assert [*chain(*first, *second)] == list(range(40))
    keys = {batch["key"] for batch in kinemae.clips(shards, CLIP)}
    assert len(keys) == 24  # every video once


def test_processes_and_workers_share_the_clips(shards):
    alone = positions(kinemae.clips(shards, CLIP, batch_size=6))
    ranks = [positions(kinemae.clips(shards, CLIP, batch_size=3, rank=rank, world=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == alone
    own = list(kinemae.clips(shards, CLIP, batch_size=6, workers=2))
    single = list(kinemae.clips(shards, CLIP, batch_size=6))
    assert all(a["clip"].equal(b["clip"]) for a, b in zip(own, single, strict=True))


def test_workers_of_a_loader_keep_the_order_and_continue_in_the_next_pass(shards):
    alone = kinemae.clips(shards, CLIP, batch_size=4)
    expected = positions(alone) + positions(alone)
    dataset = kinemae.clips(shards, CLIP, batch_size=4)
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    assert positions(loader) + positions(loader) == expected
    with pytest.raises(
        ValueError, match="state_dict: expected clips that this process reads, got a DataLoader"
    ):
        dataset.state_dict()
    single = DataLoader(kinemae.clips(shards, CLIP), batch_size=4, num_workers=2, drop_last=True)
    assert sorted(chain(*positions(single))) == list(range(24))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_restored_state_continues_behind_the_last_used_clip(shards, workers):
    expected = positions(kinemae.clips(shards, CLIP, batch_size=4))
    dataset = kinemae.clips(shards, CLIP, batch_size=4, workers=workers)
    before = [batch["position"].tolist() for batch in islice(dataset, 2)]
    state = dataset.state_dict()
    assert state["clips"] == 8
    for batch_size, world in ((4, 1), (2, 2)):  # also on another number of processes
        parts = []
        for rank in range(world):
            restored = kinemae.clips(shards, CLIP, batch_size=batch_size, rank=rank, world=world)
            restored.load_state_dict(state)
            parts.append(positions(restored))
        after = [[*chain(*step)] for step in zip(*parts, strict=True)]
        assert before + after == expected


def test_a_state_of_another_run_is_an_error(shards, synth_shards):
    state = kinemae.clips(shards, CLIP).state_dict()
    with pytest.raises(
        ValueError, match="seed: expected the state of a run with 1, got 0; fix: open the same"
    ):
        kinemae.clips(shards, CLIP, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="data: expected the state of a run with"):
        kinemae.clips(synth_shards / "train", CLIP).load_state_dict(state)


def test_chosen_and_weighted_samples_of_several_sets_are_read_as_one(shards, synth_shards):
    folders = [shards, synth_shards / "train"]
    where = "label in ['move_left', 'move_right']"
    dataset = kinemae.clips(folders, CLIP, where=where)
    keys = [batch["key"] for batch in dataset]
    expected = [
        f"{folder}/{sample.key}"
        for folder in folders
        for sample in (open_index(folder).sample(place) for place in range(len(open_index(folder))))
        if dataset.reader.clips.index.sets[str(folder)].classes[sample.label] in ("move_left", "move_right")
    ]
    assert sorted(keys) == sorted(expected)
    weighted = kinemae.clips(folders, CLIP, where=where, weight="frames")  # all are of equal length
    assert [batch["key"] for batch in weighted] == keys
    with pytest.raises(ValueError, match="weight: expected the state of a run with None, got 'frames'"):
        dataset.load_state_dict(weighted.state_dict())
    with pytest.raises(ValueError, match="shards must name at least one folder"):
        kinemae.clips([], CLIP)


def noise(clip_CTHW):
    return clip_CTHW / 255 + torch.rand(clip_CTHW.shape)


def test_the_random_numbers_of_a_transform_depend_on_the_clip_alone(shards):
    dataset = kinemae.clips(shards, CLIP, batch_size=4, transform=noise)
    torch.manual_seed(1)
    first = list(dataset)
    assert first[0]["clip"].dtype == torch.float32 and first[0]["clip"].max() > 1
    state = torch.random.get_rng_state()
    again = list(kinemae.clips(shards, CLIP, batch_size=4, transform=noise, workers=1))
    assert torch.random.get_rng_state().equal(state)
    assert all(a["clip"].equal(b["clip"]) for a, b in zip(first, again, strict=True))
    named = next(
        iter(kinemae.clips(shards, CLIP, batch_size=2, transform=lambda clip: {"mean": clip.float().mean()}))
    )
    assert [*named["clip"][0]] == ["mean"]


def test_columns_belong_to_the_clips_also_of_a_mixture(shards, synth_shards):
    index = open_index(shards)
    names = dict(zip(index.column("key"), index.column("name"), strict=True))
    [batch, *_] = kinemae.clips(shards, CLIP, batch_size=3, columns=["name", "width"])
    assert batch["name"] == [names[key] for key in batch["key"]] and len(batch["width"]) == 3
    content = dict(zip(index.column("key"), index.column("content"), strict=True))
    mixture = {str(shards): 1.0, str(synth_shards / "train"): 1.0}
    [batch, *_] = kinemae.clips(mixture, CLIP, batch_size=8, columns=["content"])
    pairs = list(zip(batch["key"], batch["content"], strict=True))
    own = [(key.removeprefix(f"{shards}/"), value) for key, value in pairs if key.startswith(str(shards))]
    assert own and all(value == content[key] for key, value in own)
    with pytest.raises(ValueError, match=r"columns: expected columns of .*, got 'caption'; .*fix: use key"):
        kinemae.clips(shards, CLIP, columns=["caption"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, or None, got 0"),
        ({"batch_size": 2.0}, "batch_size must be a whole number, got 2.0"),
        ({"workers": "2"}, "workers must be a whole number, got '2'"),
        ({"augment": "false"}, "augment must be True, False, .*, got 'false'"),
        ({"batch_size": 3, "views": 2}, "views must divide batch_size=3, got 2"),
        ({"views": 2}, "views must divide batch_size=1, got 2"),
        ({"shards": {}}, "shards must be a folder, or folders with weights above 0, got {}"),
        ({"shards": {"train": -1.0}}, "shards must be .*, got {'train': -1.0}"),
        ({"order": None}, "order must be a name, or a mapping with name and args, got None"),
        ({"order": "block"}, r"^order\.name: no order named 'block'"),
        ({"order": {"name": "blocks", "args": {"window": 1}}}, r"^order\.args\.window must be at least 2"),
        (
            {"order": "blocks", "weight": "length"},
            r"^order\.name must be random with a list of shards or a w",
        ),
        ({"where": "nota > 1"}, "^where: expected columns of"),
        ({"weight": "nota"}, "^weight: expected columns of"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"max_bad_fraction": 5}, r"max_bad_fraction must lie in \[0, 1\], got 5"),
        ({"timeout_s": 0}, "timeout_s must be above 0, got 0"),
        ({"clip": 16}, "clip: expected a ClipConfig, got int; fix: use model.clip"),
        ({"augment": {"flop": True}}, "flop"),
        ({"augment": {"min_scale": 2.0}}, "augment.min_scale, augment.max_scale must ascend"),
        ({"pixels": 3}, "pixels: expected one of frames"),
    ],
)
def test_wrong_settings_are_errors(shards, settings, message):
    with pytest.raises(ValueError, match=message):
        kinemae.clips(**{"shards": shards, "clip": CLIP, **settings})


def test_a_folder_that_is_named_twice_is_an_error(shards):
    with pytest.raises(ValueError, match=r"^shards: expected each folder once"):
        kinemae.clips([shards, shards], CLIP)


def test_wrong_processes_and_too_large_batches_are_errors(shards, monkeypatch):
    with pytest.raises(
        DataError, match=r"batch_size=25: expected at most the 24 clips .*, got 25; fix: lower"
    ):
        next(iter(kinemae.clips(shards, CLIP, batch_size=25)))
    with pytest.raises(
        ValueError, match="rank: expected a number from 0 to 1, since there are 2 processes, got 2"
    ):
        next(iter(kinemae.clips(shards, CLIP, rank=2, world=2)))
    # A test before this one may have trained in this process: it has a group, and DeepSpeed has set RANK.
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="got None; fix: give rank= and world=, or iterate after the start"):
        next(iter(kinemae.clips(shards, CLIP)))
    monkeypatch.setenv("RANK", "1")
    assert next(iter(kinemae.clips(shards, CLIP)))["position"] == 1


def test_unreadable_clips_are_named_and_too_many_end_the_loop(shards, tmp_path, caplog):
    for file in shards.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tar = tmp_path / "shard-000000.tar"
    tar.write_bytes(b"\0" * tar.stat().st_size)  # 16 of 24 videos
    with pytest.raises(DataError, match=r"11 of .* clips could not be read, more than max_bad_fraction=0.01"):
        list(kinemae.clips(tmp_path, CLIP))
    assert "its clip is black and has weight 0" in caplog.text
    read = list(kinemae.clips(tmp_path, CLIP, max_bad_fraction=1))
    assert sum(item["weight"].item() for item in read) == 8
    assert all(item["clip"].any() == bool(item["weight"]) for item in read)


LIGHTNING = """
import sys
import lightning
import torch
import kinemae

class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.seen = []
        self.scale = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, step):
        self.seen.append(batch["position"].tolist())
        return self.scale * (batch["clip"] / 255).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

def train(steps, checkpoint=None):
    clips = kinemae.clips(sys.argv[1], frames=2, stride=4, size=16, batch_size=4)
    model = Model()
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=sys.argv[2],
    )
    trainer.fit(model, clips, ckpt_path=checkpoint)
    return model, trainer

whole, _ = train(8)
first, trainer = train(3)
trainer.save_checkpoint(f"{sys.argv[2]}/last.ckpt")
rest, _ = train(8, f"{sys.argv[2]}/last.ckpt")
assert len(whole.seen) == 8 and first.seen + rest.seen == whole.seen, (whole.seen, first.seen, rest.seen)
assert torch.equal(rest.scale, whole.scale)
"""

ACCELERATE = """
import sys
import torch
from accelerate import Accelerator
import kinemae

accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(1, 1)
model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
clips = kinemae.clips(sys.argv[1], frames=2, stride=4, size=16, batch_size=4)
accelerator.register_for_checkpointing(clips)
seen = []
for batch in clips:
    loss = model((batch["clip"] / 255).mean().to(accelerator.device).view(1, 1)).sum()
    accelerator.backward(loss)
    optimizer.step()
    seen.append(batch["position"].tolist())
    if len(seen) == 2:
        accelerator.save_state(sys.argv[2])
accelerator.load_state(sys.argv[2])
assert [batch["position"].tolist() for batch in clips] == seen[2:], seen
"""


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(
    "program",
    [
        pytest.param(LIGHTNING, id="lightning"),
        pytest.param(ACCELERATE, id="accelerate", marks=pytest.mark.nightly),
    ],
)
def test_other_training_loops_use_and_restore_the_clips(shards, tmp_path, program):
    command = [sys.executable, "-c", program, str(shards), str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, env=environment)
    assert ran.returncode == 0, ran.stderr[-3000:]


SCRIPT = """
import sys
import kinemae
print("runs")
def dim(clip):
    return clip // 2
def read(transform=None):
    clips = kinemae.clips(sys.argv[1], frames=2, stride=4, size=16, workers=1, transform=transform)
    print(len(list(clips)))
"""
CALL = "read()\n"
CALL_OWN = "read(dim)\n"
GUARDED = f'if __name__ == "__main__":\n    {CALL_OWN}'


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(
    ("calls", "as_file", "output", "error"),
    [
        pytest.param(CALL + CALL, True, ["runs", "24", "24"], "", marks=pytest.mark.nightly),
        (GUARDED, True, ["runs", "runs", "24"], ""),
        (CALL_OWN, True, ["runs", "runs"], 'below `if __name__ == "__main__":`, got none: a worker imports'),
        (CALL_OWN, False, ["runs"], "got: a class or function of a notebook or an interactive session"),
    ],
    ids=["no own function", "below the line", "without the line", "interactive"],
)
def test_workers_import_a_script_only_for_its_functions(shards, tmp_path, calls, as_file, output, error):
    (tmp_path / "script.py").write_text(SCRIPT + calls)
    words = ["script.py"] if as_file else ["-c", SCRIPT + calls]
    command = [sys.executable, *words, str(shards)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert ran.stdout.split() == output and error in ran.stderr, ran.stderr[-3000:]
    assert (ran.returncode == 0) == (not error)


def test_blocks_of_several_processes_show_each_sample_once(shards):
    order = {"name": "blocks", "args": {"block_mb": 0.01, "window": 4}}
    options = {"batch_size": 2, "seed": 3, "order": order, "world": 2}
    datasets = [kinemae.clips(shards, CLIP, rank=rank, **options) for rank in range(2)]
    keys = [key for dataset in datasets for batch in dataset for key in batch["key"]]
    assert len(keys) == len(set(keys)) == len(open_index(shards)) // 4 * 4
    with pytest.raises(ValueError, match=r"order: expected the state of a run with .blocks .* of 4 clips"):
        datasets[0].load_state_dict(kinemae.clips(shards, CLIP, seed=3, batch_size=2).state_dict())
    with pytest.raises(ValueError, match=r"^order\.args\.partitions: expected a divisor of the 2 videos"):
        kinemae.clips(shards, CLIP, batch_size=2, order={"name": "blocks", "args": {"partitions": 3}})
