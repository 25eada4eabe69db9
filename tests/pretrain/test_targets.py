"""The contract of targets; a new file in `pretrain/targets` is tested automatically."""

from pathlib import Path

import pytest
import torch

from kinemae.data_tools.components import component_names
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.runtime.optimizer import parameter_groups
from kinemae.pretrain.targets.base import DecoderTarget, Prediction
from tests.pretrain.target_models import (
    FOLDER,
    GRID,
    PATCH,
    batch_of,
    build_model,
    build_target,
    draws,
    random_clip,
    save_teacher,
)

PLACES = [
    (GRID, PATCH),
    (TokenGrid(3, 1, 1), (4, 8, 8)),
    (TokenGrid(2, 3, 3), (1, 2, 2)),
    (TokenGrid(1, 2, 2), (3, 6, 6)),
    (TokenGrid(1, 2, 2), (1, 4, 4)),
]


@pytest.mark.parametrize("name", component_names(FOLDER))
class TestContract:
    @pytest.fixture
    def model(self, name, tmp_path):
        save_teacher(tmp_path)
        return build_model(build_target(name, tmp_path))

    @pytest.mark.parametrize("grid, patch", PLACES)
    def test_on_any_grid_it_trains_or_raises_an_error(self, name, tmp_path, grid, patch):
        save_teacher(tmp_path, grid, patch)
        try:
            model = build_model(build_target(name, tmp_path), grid, patch)
        except ValueError as error:
            assert "must" in str(error) and grid != GRID
            return
        batch = batch_of(random_clip(grid, patch), grid)
        prediction = model.predict(batch, draws())[0]
        shape, target = model.encoder.shape, model.target
        sizes = {"target": target.target_values(shape), "visible": target.visible_values(shape)}
        assert max(sizes.values()) > 0 or target.uses_global_batch
        for kind, found in (("target", prediction.decoded_BMP), ("visible", prediction.visible_BKP)):
            expected = (*batch.tokens[kind].shape, sizes[kind])
            assert found.shape == expected if sizes[kind] else found is None
        values = model(batch, draws())
        for value_B in values.values():
            assert value_B.shape == (2,) and value_B.dtype == torch.float32 and value_B.isfinite().all()
        values["loss"].sum().backward()
        norms = [p.grad.norm() for p in model.encoder.parameters() if p.grad is not None]
        assert all(norm.isfinite() for norm in norms) and max(norms) > 0

    def test_only_a_target_of_the_global_batch_has_trainable_parameters(self, name, model):
        model(batch_of(random_clip()), draws())["loss"].sum().backward()
        own, is_trained = list(model.target.parameters()), model.target.uses_global_batch
        assert all((p.grad is not None) == p.requires_grad == is_trained for p in own)
        trained = {id(p) for group in parameter_groups(model, 0.05) for p in group["params"]}
        assert all((id(p) in trained) == is_trained for p in own)

    def test_the_same_clips_have_the_same_loss_to_the_last_bit(self, name, model):
        first, second = (model(batch_of(random_clip()), draws()) for _ in range(2))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_a_clips_loss_depends_on_its_batch_only_with_a_target_of_the_global_batch(self, name, model):
        alone = batch_of(random_clip()[:1])
        alone.tokens.update({kind: t[:1] for kind, t in batch_of(random_clip()).tokens.items()})
        draws_alone = type(draws())(0, torch.arange(1))
        both_B = model(batch_of(random_clip()), draws())["loss"]
        alone_B = model(alone, draws_alone)["loss"]
        is_equal = torch.allclose(alone_B, both_B[:1], atol=1e-5, rtol=1e-5)
        assert is_equal != model.target.uses_global_batch

    def test_bf16_autocast_stays_finite_and_near(self, name, model):
        exact_B = model(batch_of(random_clip()), draws())["loss"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            values = model(batch_of(random_clip()), draws())
        assert values["loss"].dtype == torch.float32
        torch.testing.assert_close(values["loss"], exact_B, atol=0.05, rtol=0.05)

    @pytest.mark.parametrize("level", [0, 7, 255])
    def test_it_stays_finite_on_a_clip_of_one_colour(self, name, model, level):
        values = model(batch_of(torch.full_like(random_clip(), level)), draws())
        values["loss"].sum().backward()
        assert all(value_B.isfinite().all() for value_B in values.values())
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(grad.isfinite().all() for grad in grads)

    def test_the_loss_of_the_true_values_is_zero_and_others_are_higher(self, name, model):
        if not isinstance(model.target, DecoderTarget):
            pytest.skip("it has no target without a teacher; its own tests cover it")
        _, inputs = model.predict(batch_of(random_clip()), draws())
        truth_BMP = model.target.compute_target(inputs)
        assert truth_BMP.dtype == torch.float32 and truth_BMP.isfinite().all()
        assert not truth_BMP.requires_grad
        perfect_B = model.target.losses(Prediction(decoded_BMP=truth_BMP), inputs)["loss"]
        worse_B = model.target.losses(Prediction(decoded_BMP=(truth_BMP + 0.5).bfloat16()), inputs)["loss"]
        assert (perfect_B == 0).all() and (worse_B > 0.05).all()

    def test_pictures_are_bytes_of_whole_patches_or_absent(self, name, model):
        prediction, inputs = model.predict(batch_of(random_clip()), draws())
        if prediction.decoded_BMP is None:
            pytest.skip("it predicts no target tokens")
        for visible_only in (True, False):
            picture_BMP = model.target.to_pixels(prediction.decoded_BMP, inputs, visible_only=visible_only)
            if picture_BMP is not None:
                assert picture_BMP.dtype == torch.uint8
                assert picture_BMP.shape == (*inputs.target_BM.shape, model.encoder.shape.patch_values)

    def test_state_metrics_are_finite_scalars(self, name, model):
        watched = model.target.state_metrics(model.encoder)
        assert all(value.shape == () and value.isfinite() for value in watched.values())

    def test_a_copy_loaded_from_its_state_predicts_the_same(self, name, model, tmp_path: Path):
        model.after_update(0.5)
        other = build_model(build_target(name, tmp_path))
        for parameter in other.parameters():
            parameter.data.zero_()
        other.load_state_dict(model.state_dict())
        values = [each(batch_of(random_clip()), draws())["loss"] for each in (model, other)]
        assert torch.equal(*values)
