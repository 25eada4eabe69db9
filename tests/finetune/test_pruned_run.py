"""Fine-tuning with pruning on the command line, and evaluation with the same and another pruning."""

import json

import pytest

from tests.finetune.test_finetune_run import SCRATCH, finetune, read_result, start

pytestmark = pytest.mark.slow
PRUNED = ["clip.size=32", "pruning={name: run_length, args: {threshold: 12.0}}"]
TOKENS = 2 * 4 * 4


@pytest.fixture(scope="module")
def pruned_run(common, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "pruned"
    start("train", *common, *SCRATCH, *PRUNED, f"run_dir={run_dir}")
    return run_dir


@pytest.fixture
def own_result(pruned_run):
    """The run's result, restored after the test."""
    text = (pruned_run / "result.json").read_text()
    yield json.loads(text)
    (pruned_run / "result.json").write_text(text)


def test_a_pruned_run_reports_its_kept_tokens(pruned_run, own_result):
    lines = [json.loads(line) for line in (pruned_run / "metrics.jsonl").read_text().splitlines()]

    assert all(0 < line["kept_fraction"] < 1 for line in lines)
    assert own_result["tokens"]["grid"] == TOKENS
    assert TOKENS / 2 <= own_result["tokens"]["kept"] < TOKENS
    assert own_result["run"]["pruning"] == {"name": "run_length", "args": {"threshold": 12.0}}


@pytest.mark.parametrize("clips", [1, 5])
def test_evaluating_a_pruned_model_repeats_the_runs_score(pruned_run, own_result, clips):
    assert finetune("evaluate", pruned_run, f"batch.clips_per_device={clips}") == 0

    result = read_result(pruned_run)
    exact = ("top1", "top5", "confusion_matrix", "videos", "tokens", "per_class_accuracy", "data", "run")
    assert {key: result[key] for key in exact} == {key: own_result[key] for key in exact}
    # The last digits depend on the composition of a forward pass.
    assert (result["loss"], result["ece"]) == pytest.approx((own_result["loss"], own_result["ece"]), rel=1e-6)


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        (["pruning={name: none}"], TOKENS),
        (["pruning.name=none", "merge.per_block=4"], TOKENS),
        (["pruning={name: motion, args: {keep: 0.25}}"], TOKENS / 4),
        (["pruning.args.threshold=300"], TOKENS / 2),
    ],
)
def test_a_model_can_be_evaluated_with_another_pruning(pruned_run, own_result, overrides, kept):
    assert finetune("evaluate", pruned_run, *overrides) == 0

    assert read_result(pruned_run)["tokens"] == {"grid": TOKENS, "kept": kept}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pruning={name: learned}", "expected a pruning that needs no trained scorer, got learned"),
        ("merge.per_block=2", "merge.per_block: expected 0 with a pruning that keeps"),
        ("pruning.args.keep=2.0", "pruning.args.keep must be a fraction above 0 and at most 1"),
    ],
)
def test_an_unsupported_pruning_is_rejected(pruned_run, own_result, override, message, capsys):
    assert finetune("evaluate", pruned_run, override) == 2

    assert message in capsys.readouterr().err


def test_a_dry_run_prints_the_kept_tokens(common, tmp_path, capsys):
    fraction = ["pruning={name: motion, args: {keep: 0.25}}", "clip.size=32"]

    assert (
        finetune("train", *common, *SCRATCH, *fraction, f"run_dir={tmp_path / 'run'}", "--dry-run", "--json")
        == 0
    )

    counts = json.loads(capsys.readouterr().out)
    assert (counts["tokens"], counts["kept_tokens"]) == (TOKENS, TOKENS // 4)
