"""Components are found by file name in their own folder; a wrong config gives an error with a fix."""

import sys
from pathlib import Path

import pytest

from kinemae.data_tools.components import Component, build_component, component_names
from kinemae.data_tools.layouts.base import Layout
from kinemae.data_tools.sources.base import Source

BASE = "class Shape:\n    def area(self): raise NotImplementedError\n"
SQUARE = """
from shapes.base import Shape

class Square(Shape):
    def __init__(self, *, side: float, colour: str = "red"):
        if side <= 0:
            raise ValueError(f"shape.args.side must be above 0, got {side}")
        self.side = side

    def area(self):
        return self.side ** 2
"""


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type:
    """A package of components."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    for name, text in {"__init__": "", "base": BASE, "square": SQUARE}.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "shapes"]:
        monkeypatch.delitem(sys.modules, name)
    from shapes.base import Shape  # type: ignore[import-not-found]

    return Shape


def test_a_component_is_a_file_in_the_folder(shapes: type):
    assert component_names("shapes") == ["square"]
    square = build_component("shapes", Component(name="square", args={"side": 3}), shapes)
    assert square.area() == 9


@pytest.mark.parametrize(
    "part, message",
    [
        (Component(name="sqare"), "shape.name: no shape named 'sqare'; did you mean 'square'"),
        (Component(name="x"), "no shape named 'x'; expected one of square"),
        (Component(name="base"), "no shape named 'base'"),
        (Component(name="os.path"), "no shape named 'os.path'"),
        (
            Component(name="square", args={"sides": 3}),
            "shape.args: square has no argument 'sides'; did you mean 'side'",
        ),
        (Component(name="square", args={"self": 3}), "square has no argument 'self'"),
        (Component(name="square"), r"shape.args: square needs side; set shape.args.side=\.\.\."),
        (Component(name="square", args={"side": -1}), "shape.args.side must be above 0, got -1"),
    ],
)
def test_a_wrong_component_is_refused_with_a_fix(shapes: type, part: Component, message: str):
    with pytest.raises(ValueError, match=message):
        build_component("shapes", part, shapes)


def test_a_component_without_arguments_rejects_any():
    with pytest.raises(ValueError, match="folder has no argument 'depth'"):
        build_component("kinemae.data_tools.sources", Component(name="folder", args={"depth": 2}), Source)


def test_an_argument_name_of_another_project_gets_a_suggestion():
    with pytest.raises(ValueError, match=r"has no argument 'size'; did you mean 'short_side'\?"):
        build_component("kinemae.data_tools.layouts", Component(name="h264", args={"size": 64}), Layout)
