"""Architecture rules: allowed imports between packages, one owner file per library, sizes, docstrings."""

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("data_tools", "pretrain", "finetune", "launch")
MAY_IMPORT = {
    "data_tools": set(),
    "pretrain": {"data_tools"},
    "finetune": {"pretrain", "data_tools"},
    "launch": {"data_tools"},
}
OWNERS = {
    "omegaconf": {"data_tools/config.py"},
    "webdataset": {"data_tools/sharding/tar_writer.py", "data_tools/stream/tar_reader.py"},
    "braceexpand": {"data_tools/indexing/shard_list.py"},
    "pyarrow": {
        "data_tools/conditions.py",
        "data_tools/curation/duplicates.py",
        "data_tools/editing/compact.py",
        "data_tools/editing/merge.py",
        "data_tools/editing/rewrite.py",
        "data_tools/editing/rows.py",
        "data_tools/editing/selection.py",
        "data_tools/editing/sets.py",
        "data_tools/index.py",
        "data_tools/manifest/parquet_files.py",
        "data_tools/sharding/video_list.py",
        "data_tools/index_schema.py",
        "data_tools/index_writer.py",
        "data_tools/leaks.py",
        "data_tools/unread.py",
        "finetune/evaluation/predictions.py",
        "finetune/features/files.py",
        "finetune/predict/tables.py",
        "finetune/probe/external.py",
        "finetune/probe/store.py",
    },
    "fsspec": {"data_tools/storage/remote.py"},
    "aiohttp": {"data_tools/storage/remote.py"},
    "av": {
        "data_tools/curation/frame_stats.py",
        "data_tools/encoding/convert.py",
        "data_tools/encoding/deinterlace.py",
        "data_tools/encoding/encode.py",
        "data_tools/encoding/encoders.py",
        "data_tools/encoding/frame_rate.py",
        "data_tools/encoding/source_decoder.py",
        "data_tools/encoding/resample.py",
        "data_tools/stream/container.py",
        "data_tools/stream/decode.py",
        "data_tools/stream/geometry.py",
        "data_tools/stream/live.py",
        "data_tools/stream/frame_decoder.py",
        "data_tools/stream/yuv_planes.py",
        "data_tools/stream/random_access.py",
        "data_tools/stream/sequential.py",
    },
    "cv2": {"data_tools/stream/views.py"},
    "torchcodec": set(),
    "deepspeed": {"pretrain/runtime/engine.py", "pretrain/runtime/sharded_state.py"},
    "tensorboard": {"pretrain/runtime/metrics.py"},
    "torch.utils.tensorboard": {"pretrain/runtime/metrics.py"},
    "torchvision": {"data_tools/stream/colour.py"},
    "torch.distributed": {
        "data_tools/stream/clip_reader.py",
        "data_tools/stream/clip_stream.py",
        "launch/doctor/probe.py",
        "launch/supervisor/membership.py",
        "pretrain/runtime/processes.py",
    },
    "peft": {"finetune/adapt/lora.py"},
    "ray": {"data_tools/ray_pool.py"},
    "umap": {"finetune/features/map.py"},
    "onnx": {"finetune/export/programs.py"},
    "onnxruntime": {"finetune/export/programs.py"},
    "onnxscript": {"finetune/export/programs.py"},
    "transformers": {"finetune/export/weights.py"},
    "jinja2": {"data_tools/report/render.py"},
    "huggingface_hub": {"finetune/inference/hub.py"},
    "torchmetrics": {"finetune/metrics/multilabel.py", "finetune/metrics/ordinal.py"},
    "sklearn": {"finetune/metrics/regression.py", "finetune/probe/logistic.py"},
    "pickle": {"finetune/conversion/read_weights.py"},  # only the name of its error
}
PURE = ("pretrain/model", "pretrain/masking", "pretrain/noise", "pretrain/pruning", "pretrain/targets")
# Besides torch and the standard library: shared modules without ranks and files.
PURE_MAY_USE = {
    "torch",
    "kinemae.data_tools.config",
    "kinemae.data_tools.components",
    "kinemae.data_tools.randomness",
    "kinemae.data_tools.stream.batch",
    "kinemae.data_tools.stream.yuv_to_rgb",
    "kinemae.data_tools.weighted_components",
}
# Exceptions.
READS_AN_ENCODER = {
    "pretrain/targets/teacher.py": ("kinemae.pretrain.exported_model", "kinemae.data_tools.command")
}
MAX_LINES = 500
MAX_FUNCTION_LINES = 45  # 40 lines and a docstring


def sources(repo: Path, *folders: str) -> Iterator[tuple[str, ast.Module]]:
    for folder in folders or PACKAGES:
        for path in sorted((repo / folder).rglob("*.py")):
            yield str(path.relative_to(repo)), parsed(path)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(tree: ast.Module) -> set[str]:
    """Return the full dotted names of all modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def begins_with(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def test_packages_import_only_along_the_chain(repo: Path) -> None:
    for path, tree in sources(repo):
        package = path.split("/")[0]
        assert not {name.split(".")[0] for name in imports(tree)} & set(PACKAGES), (
            f"{path}: imports start with kinemae."
        )
        used = {name.split(".")[1] for name in imports(tree) if begins_with(name, "kinemae") and "." in name}
        more = (used & set(PACKAGES)) - MAY_IMPORT[package] - {package}
        assert not more, f"{path} imports {more}"


@pytest.mark.parametrize("library", OWNERS)
def test_only_its_owner_imports_a_library(repo: Path, library: str) -> None:
    users = {
        path for path, tree in sources(repo) if any(begins_with(name, library) for name in imports(tree))
    }
    assert users <= OWNERS[library], f"{library} belongs to {OWNERS[library] or 'nobody'}"
    assert users == OWNERS[library], f"{OWNERS[library] - users} no longer uses {library}: tighten the rule"


def test_nothing_is_unpickled(repo: Path) -> None:
    for path, tree in sources(repo):
        of_pickle = {name for name in imports(tree) if begins_with(name, "pickle")}
        assert of_pickle <= {"pickle", "pickle.UnpicklingError"}, path
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), path


def test_model_components_import_only_torch(repo: Path) -> None:
    for path, tree in sources(repo, *PURE):
        for name in imports(tree):
            is_ours = any(begins_with(name, f"kinemae.{folder.replace('/', '.')}") for folder in PURE)
            is_known = any(begins_with(name, allowed) for allowed in PURE_MAY_USE)
            is_standard = name.split(".")[0] in sys.stdlib_module_names
            is_exception = any(begins_with(name, allowed) for allowed in READS_AN_ENCODER.get(path, ()))
            assert is_ours or is_known or is_standard or is_exception, f"{path} imports {name}"


def test_packages_have_an_empty_init(repo: Path) -> None:
    for path in repo.glob("*/**/__init__.py"):
        if path.relative_to(repo).parts[0] in PACKAGES:
            is_called = path.parent.name in ("finetune", "pretrain")  # `kinemae.pretrain(...)`
            assert path.read_text().strip() == "" or path.parent.name == "launch" or is_called, path


def test_files_and_functions_are_below_the_limits(repo: Path) -> None:
    for path, tree in sources(repo):
        lines = len((repo / path).read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_LINES, f"{path} has {lines} lines"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= MAX_FUNCTION_LINES, f"{path}: {node.name} has {length} lines"


def test_public_functions_and_classes_have_docstrings(repo: Path) -> None:
    for path, tree in sources(repo):
        assert ast.get_docstring(tree) or not tree.body, f"{path} has no docstring"
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                lines = (node.end_lineno or 0) - node.lineno
                assert ast.get_docstring(node) or lines <= 3, f"{path}: {node.name} has no docstring"


def test_the_top_level_has_only_the_planned_packages(repo: Path) -> None:
    packages = {path.name for path in repo.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert packages == {"kinemae", *PACKAGES}


def test_pyproject_lists_every_package(repo: Path) -> None:
    listed = tomllib.loads((repo / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [path.parent for name in PACKAGES for path in (repo / name).rglob("__init__.py")]
    found = {"kinemae." + ".".join(folder.relative_to(repo).parts) for folder in folders}
    assert set(listed) == {"kinemae", "kinemae.configs", *found}


def test_every_imported_library_is_a_declared_dependency(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    used = ("train", "s3", "http", "hub", "lora", "maps", "ray", "export", "huggingface")
    extras = [project["optional-dependencies"][name] for name in used]
    declared = {re.split(r"[<>=\[ ]", given)[0] for given in sum(extras, project["dependencies"])}
    names = {
        "PIL": "pillow",
        "cv2": "opencv-python-headless",
        "yaml": "pyyaml",
        "sklearn": "scikit-learn",
        "umap": "umap-learn",
    }
    for path, tree in sources(repo):
        roots = {name.split(".")[0] for name in imports(tree)} - {"kinemae"} - sys.stdlib_module_names
        assert {names.get(root, root) for root in roots} <= declared, path
