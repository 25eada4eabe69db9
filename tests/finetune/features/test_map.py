"""Maps: PCA and UMAP, the page in a browser, and the files of TensorBoard's projector."""

import json
import re
import sys

import numpy as np
import pytest
from sklearn.decomposition import PCA

from kinemae.finetune.features.files import read_features
from kinemae.finetune.features.map import MapConfig, group_values, place_rows
from tests.browser import OWN_CALLS, browse, complaints, needs_browser, recording_proxy, without_policy
from tests.conftest import run_module
from tests.finetune.probe.conftest import finetune, make_features

# Points at the third dot, then presses an arrow key and hides the first group.
USE = """<script>
{
const root = document.documentElement;
const box = circles[2].getBoundingClientRect();
const at = {clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true};
map.dispatchEvent(new PointerEvent("pointermove", at));
root.dataset.text = document.getElementById("text").textContent;
root.dataset.position = getComputedStyle(document.getElementById("thumbnail")).backgroundPosition;
root.dataset.path = path.getAttribute("d").split("L").length;
map.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
root.dataset.next = document.getElementById("text").textContent;
document.querySelector(".keys button").click();
root.dataset.off = circles.filter(circle => circle.classList.contains("off")).length;
document.getElementById("in").click();
root.dataset.zoom = map.getAttribute("viewBox").split(" ")[2];
root.dataset.wide = root.scrollWidth;
const image = new Image();
image.onload = () => { root.dataset.sprite = `${image.naturalWidth}x${image.naturalHeight}`; };
image.src = getComputedStyle(document.getElementById("thumbnail")).backgroundImage.slice(5, -2);
}
</script>"""


@pytest.fixture(scope="module")
def page(clips, tmp_path_factory):
    path = tmp_path_factory.mktemp("map") / "map.html"
    assert finetune("map", clips, path, "colour=video") == 0
    return path


def attribute(dom, name):
    [value] = re.findall(rf'data-{name}="([^"]*)"', dom[: dom.index(">", dom.index("<html")) + 1])
    return value


@pytest.mark.parametrize("shape", [(40, 6), (8, 30), (5, 1)])
def test_pca_equals_scikit_learn(shape):
    vectors_RD = np.random.default_rng(0).standard_normal(shape) * np.arange(1, shape[1] + 1)

    place_R2, axes = place_rows(vectors_RD.astype(np.float32), MapConfig(standardize=False))

    reference = PCA(min(2, *shape), svd_solver="full").fit(vectors_RD)
    expected_R2 = np.abs(reference.transform(vectors_RD))
    np.testing.assert_allclose(np.abs(place_R2[:, : expected_R2.shape[1]]), expected_R2, atol=1e-3)
    share = 100 * reference.explained_variance_ratio_[0]
    assert axes[0] == f"component 1: {share:.1f} % of variance"


@pytest.mark.nightly
def test_a_single_row_is_in_the_middle_of_a_map_and_too_few_for_umap(tmp_path, capsys):
    key = "<script>alert(1)</script>.mp4"
    np.savez(tmp_path / "x.npz", features=np.ones((1, 4)), key=np.array([key]))
    page = tmp_path / "x.html"

    assert finetune("map", tmp_path / "x.npz", page) == 0

    text = page.read_text()
    assert 'cx="500.0"' in text and "component 2: 0.0 % of variance" in text and key not in text
    assert finetune("map", tmp_path / "x.npz", page, "method=umap") == 2
    assert "method=umap: expected at least 4 rows, got 1; fix: set" in capsys.readouterr().err


@pytest.mark.slow
def test_umap_places_rows_of_a_class_together(tmp_path):
    """Without numba's compiler, which takes a minute: UMAP then runs in Python."""
    found = make_features(samples=12, classes=2, apart=9.0)
    np.savez(tmp_path / "x.npz", **found)
    page = tmp_path / "x.html"
    words = ["map", tmp_path / "x.npz", page, "method=umap", "neighbours=4", "min_distance=0"]

    run_module("kinemae", "finetune", *map(str, words), NUMBA_DISABLE_JIT="1")

    place_R2 = np.array(re.findall(r'cx="([\d.]+)" cy="([\d.-]+)"', page.read_text())[:12], dtype=float)
    distance_RR = np.linalg.norm(place_R2[:, None] - place_R2, axis=2)
    is_same_RR = found["label"][:, None] == found["label"]
    assert distance_RR[is_same_RR].max() < distance_RR[~is_same_RR].min()
    assert "component" not in page.read_text()


def test_the_most_frequent_values_are_named():
    groups = group_values([*"aaabbcc", None, *(str(number) for number in range(20))])
    assert [name for name, _, _ in groups.legend][-4:] == ["a", "b", "c", "12 other values"]
    assert sum(count for _, count, _ in groups.legend) == 28 and len(groups.legend) == 12
    assert groups.numbers[7] == 11, "a missing value is among the others"
    assert group_values([None, None]).legend == [("all", 2, "c0 shape0")]


@pytest.mark.slow
@needs_browser
def test_the_page_shows_frames_filters_and_zooms(page, clips, tmp_path):
    assert complaints(browse(page, tmp_path, "--dump-dom")) == []
    with recording_proxy() as (proxy, seen):
        used = without_policy(page, tmp_path, USE)
        result = browse(
            used, tmp_path, proxy, "--dump-dom", "--window-size=500,900", "--virtual-time-budget=500"
        )
    assert complaints(result) == []
    assert [line for line in seen if not any(host in line for host in OWN_CALLS)] == []
    table = read_features(clips)
    count = table.videos.count("a.mp4")
    columns = int(np.ceil(np.sqrt(len(table))))
    lines = -(-len(table) // columns)
    dom = result.stdout
    assert attribute(dom, "text").startswith("a.mp4") and attribute(dom, "text").endswith("a.mp4#0002")
    assert attribute(dom, "next").endswith("a.mp4#0003")
    assert attribute(dom, "position").startswith(f"{100 * 2 / (columns - 1):.4g}"[:4])
    assert int(attribute(dom, "path")) == int(attribute(dom, "off")) == count
    assert attribute(dom, "zoom") == "625" and int(attribute(dom, "wide")) <= 500
    assert attribute(dom, "sprite") == f"{64 * columns}x{64 * lines}"


def test_names_cannot_add_elements_to_the_page(tmp_path):
    found = make_features(samples=6)
    found["key"] = np.array([f"</script><img src=x>{row}" for row in range(6)])
    np.savez(tmp_path / "x.npz", **found)

    assert finetune("map", tmp_path / "x.npz", tmp_path / "x.html", "colour=key") == 0

    page = (tmp_path / "x.html").read_text()
    assert "<img" not in page and page.count("</script>") == 2


def test_tensorboard_serves_vectors_names_and_thumbnails(clips, tmp_path):
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
    from werkzeug.test import Client, EnvironBuilder
    from werkzeug.wrappers import Response

    assert finetune("map", clips, tmp_path, "rows=10") == 0
    multiplexer = EventMultiplexer()
    provider = MultiplexerDataProvider(multiplexer, str(tmp_path))
    plugin = ProjectorPlugin(TBContext(logdir=str(tmp_path), multiplexer=multiplexer, data_provider=provider))
    apps = plugin.get_plugin_apps()

    def get(route, **arguments):
        client = Client(apps[route], Response)
        response = client.open(EnvironBuilder("/", query_string=arguments).get_request())
        assert response.status_code == 200, response.data
        return response.data

    plugin._update_configs()
    run = next(iter(plugin._configs))
    at = {"run": run, "name": "features"}
    table = read_features(clips)
    rows = [line.split("\t") for line in get("/metadata", **at).decode().splitlines()]
    chosen = [int(row[0]) for row in rows[1:]]
    vectors_RD = np.frombuffer(get("/tensor", **at), np.float32).reshape(10, -1)
    np.testing.assert_allclose(vectors_RD, table.features[chosen], rtol=1e-5, atol=1e-6)
    assert rows[0] == ["row", "video", "start_s", "end_s", "key", "group"]
    assert [row[4] for row in rows[1:]] == [table.keys[row] for row in chosen]
    [info] = json.loads(get("/info", run=run))["embeddings"]
    assert info["tensorShape"] == [10, 32] and info["sprite"]["singleImageDim"] == [64, 64]
    assert get("/sprite_image", **at).startswith(b"\x89PNG")


def test_wrong_maps_are_one_line(clips, tmp_path, capsys, monkeypatch):
    def fails(code, message, *words):
        assert finetune("map", clips, tmp_path / "x.html", *words) == code
        assert message in capsys.readouterr().err.splitlines()[-1]

    fails(2, "colour: expected one of the columns key, ", "colour=size")
    fails(2, "rows must be at least 3, got 2", "rows=2")
    fails(2, "neighbours: expected at most", "method=umap", "neighbours=1000")
    monkeypatch.setitem(sys.modules, "umap", None)
    fails(2, "fix: pip install 'kinemae[maps]'", "method=umap")
