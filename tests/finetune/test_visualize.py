"""`kinemae finetune visualize`: the model's own tokens, and the attention pooling of its head."""

import json

import pytest
import torch

import kinemae
from kinemae.data_tools.command import run_program
from kinemae.data_tools.components import Component
from kinemae.finetune.__main__ import PROGRAM
from kinemae.finetune.token_reduction import TokenReduction
from kinemae.finetune.visualize import pooling_of, subject_of_task
from kinemae.pretrain.visualize.attention import AttentionMaps
from kinemae.pretrain.visualize.settings import VisualizeConfig
from kinemae.pretrain.visualize.tokens import kept_tokens
from kinemae.pretrain.visualize.views import Window
from tests.filming import SHIPPED
from tests.finetune.test_model_file import saved

PRUNINGS = {
    "motion": {"keep": 0.4},
    "motion above a threshold": {"threshold": 60.0},
    "run_length": {"threshold": 60.0},
    "learned": {"keep": 0.3},
    "learned above its threshold": {"keep": None},
}


def window_of(model):
    clip_1CTHW = torch.randint(256, (1, 3, 4, 16, 16), dtype=torch.uint8)
    return Window(subject_of_task(model), clip_1CTHW, torch.arange(4.0), 0, 1)


@pytest.mark.parametrize("case", PRUNINGS)
def test_the_kept_tokens_are_those_that_the_model_encodes(tmp_path, case):
    torch.manual_seed(1)  # with some seeds, all tokens are above the learned threshold
    pruning = Component(name=case.split()[0], args=PRUNINGS[case])
    saved(tmp_path, token_reduction=TokenReduction(pruning=pruning))
    model = kinemae.load(tmp_path)
    window = window_of(model)
    with torch.no_grad():
        kept_N = kept_tokens(window.subject, model.task_model.pruning, window.clip_1CTHW)
        index_N = window.passes[0].index_N
    assert torch.equal(kept_N.nonzero()[:, 0], index_N) and 0 < len(index_N) < len(kept_N)


@pytest.mark.parametrize("pruning", [Component(name="none"), Component(name="motion", args={"keep": 0.5})])
def test_pooling_weights_times_the_values_are_the_output_of_the_attention(tmp_path, pruning):
    saved(tmp_path, head="attentive", token_reduction=TokenReduction(pruning=pruning))
    model = kinemae.load(tmp_path)
    window, pool, caught = window_of(model), model.task_model.head.pool, []
    view = pooling_of(model, VisualizeConfig(heads=[0]))
    pool.proj.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    pool.register_forward_pre_hook(lambda module, inputs: caught.append(pool.project(*inputs[:2])[2]))
    with torch.no_grad():
        weight_AQN = view.weights(window)["pool"]
        map_N = view.maps(window)["pool head 0"]
    value_ANF, attended_QD = caught[0][0], caught[1][0]
    assert torch.allclose((weight_AQN @ value_ANF).transpose(0, 1).flatten(1), attended_QD, atol=1e-5)
    kept_N = window.passes[0].index_N
    assert torch.allclose(map_N[kept_N], weight_AQN[0, 0] * len(kept_N))
    assert int(map_N.isnan().sum()) == len(map_N) - len(kept_N)


def test_the_command_draws_a_fine_tuned_model(tmp_path, capsys):
    saved(tmp_path / "model", head="attentive")
    words = [str(tmp_path / "model"), str(SHIPPED / "vp9.webm"), str(tmp_path / "out"), "--json"]
    assert run_program(PROGRAM, ["visualize", *words, "windows=1", "stride=6"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {path.rpartition("/")[2].split(".")[0] for path in found["files"]} == {
        "attention", "pooling", "pruning", "merging", "similarity", "pca",
    }  # fmt: skip
    assert "no decoder" in found["not_drawn"]["reconstruction"]
    saved(tmp_path / "model")
    assert run_program(PROGRAM, ["visualize", *words, "views=[pooling]"]) == 2
    assert "the model has no head with cross-attention" in capsys.readouterr().err


def test_a_clip_of_several_chunks_has_the_maps_of_its_chunks(tmp_path):
    saved(tmp_path, head="attentive")
    model = kinemae.load(tmp_path)
    clips = torch.randint(256, (2, 3, 4, 16, 16), dtype=torch.uint8)
    maps = []
    with torch.no_grad():
        for chunks, part in ((1, clips[:1]), (1, clips[1:]), (2, torch.cat(list(clips), dim=1)[None])):
            model.task_model.chunks = chunks
            window = Window(subject_of_task(model), part, torch.arange(4.0 * chunks), 0, 1)
            maps.append(AttentionMaps([0, 1], None, None).maps(window))
            pooled_N = pooling_of(model, VisualizeConfig()).maps(window)["pool"]
            assert len(pooled_N) == window.subject.grid.tokens
            assert torch.allclose(pooled_N.mean(), torch.ones(()), atol=1e-5)
    for title, whole_N in maps[2].items():
        assert torch.equal(whole_N, torch.cat([maps[0][title], maps[1][title]]))
