"""The viewer of a report's cases: its HTML, and in a browser its pictures, sliders and keys."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from browser import PageLog, axe_violations
from PIL import Image

from trainable.data.cache import open_case
from trainable.data.prepare import Data
from tune.report.case_pictures import PLANES, draw_plane, oriented
from tune.report.case_viewer import case_section
from tune.report.case_views import CaseImages, CaseView, images_of
from tune.report.volumes import CODE_STEP, coarser, encode, encode_case, largest_error, tiles

if TYPE_CHECKING:
    from playwright.sync_api import Page

DICE = {"dice_WT": 0.8, "dice_TC": 0.7, "dice_ET": 0.6, "dice_mean": 0.7}
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>cases</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root { --bg: #fff; --fg: #1a1a1a; --muted: #595959; color-scheme: light; }
@media (prefers-color-scheme: dark) { :root { --bg: #111; --fg: #eee; --muted: #aaa; color-scheme: dark; } }
body { font: 15px sans-serif; background: var(--bg); color: var(--fg); margin: 16px; }</style>
<main><h1>Cases</h1>"""


@pytest.fixture(scope="module")
def views(prepared: Data) -> list[CaseView]:
    """Three cases, with the truth moved a little as the prediction."""
    found = []
    for name, rank in zip(prepared.split.names, ("worst", "median", "best"), strict=False):
        case = open_case(prepared.folder, name)
        images = images_of(case, np.roll(case.label, (2, 1, 1), (0, 1, 2)))
        found.append(CaseView(name, "validation", rank, 20, "trial 3, epoch 40", DICE, images))
    return found


def picture_of(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_labels_survive_encoding_and_grey_levels_nearly(views: list[CaseView]) -> None:
    images = views[0].images
    assert images is not None
    encoded = encode(images, quality=75)
    codes = np.asarray(picture_of(encoded.labels).convert("L")) // CODE_STEP
    for shift, label in ((1, images.truth), (4, images.prediction)):
        assert np.array_equal(codes // shift % 4 == 3, tiles(label) == 4)
        assert np.array_equal(codes // shift % 4 > 0, tiles(label) > 0)
    flair = np.asarray(picture_of(encoded.modalities["flair"]).convert("L")).astype(float)
    assert np.abs(flair - tiles(images.grey[0])).mean() < 6


def test_a_case_that_is_too_large_is_compressed_more_and_then_made_coarser(views: list[CaseView]) -> None:
    images = views[0].images
    assert images is not None
    best, worse = encode(images, quality=75), encode(images, quality=55)
    assert encode_case(images, best.size) == best
    assert encode_case(images, best.size - 1) == worse
    coarse = encode_case(images, worse.size - 1)
    assert coarse.is_coarse
    assert coarse.size < worse.size
    assert coarse.shape == tuple(round(size / 1.5) for size in images.truth.shape)
    assert "made coarser, about 1.5 mm" not in case_section([views[0]], anonymous=True)


def test_coarser_voxels_stay_where_they_were(views: list[CaseView]) -> None:
    images = views[0].images
    assert images is not None
    coarse = coarser(images)
    ends = [affine @ (*(np.array(shape) - 0.5), 1) for affine, shape in (
        (images.affine, images.truth.shape), (coarse.affine, coarse.truth.shape)
    )]  # fmt: skip
    starts = [one.affine @ (-0.5, -0.5, -0.5, 1) for one in (images, coarse)]
    assert np.allclose(ends[0], ends[1])
    assert np.allclose(starts[0], starts[1])
    volumes = [np.sum(one.truth > 0) * np.prod(one.mm) for one in (images, coarse)]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.1)


def test_planes_have_the_patients_right_left_and_superior_up() -> None:
    volume = np.zeros((4, 5, 6), np.uint8)
    volume[3, 4, 5] = 1  # left, posterior, superior
    assert oriented(volume, PLANES["axial"], 5)[-1, -1] == 1
    assert oriented(volume, PLANES["coronal"], 4)[0, -1] == 1
    assert oriented(volume, PLANES["sagittal"], 3)[0, -1] == 1


def test_a_still_picture_keeps_the_proportions_of_the_brain() -> None:
    blank = np.zeros((10, 20, 5), np.uint8)
    images = CaseImages(np.zeros((4, 10, 20, 5), np.uint8), blank, blank, np.eye(4), (1.0, 1.0, 3.0))
    sizes = {name: draw_plane(images, 0, plane, 0, 10.0).size for name, plane in PLANES.items()}
    assert sizes == {"axial": (100, 200), "coronal": (100, 150), "sagittal": (200, 150)}


def test_the_first_slice_shown_is_that_of_the_largest_error() -> None:
    truth = np.zeros((5, 6, 7), np.uint8)
    wrong = truth.copy()
    wrong[1:4, 2, 6] = 4
    images = CaseImages(np.zeros((4, 5, 6, 7), np.uint8), truth, wrong, np.eye(4), (1.0, 1.0, 1.0))
    assert largest_error(images) == (2, 2, 6)
    assert largest_error(replace(images, prediction=truth)) == (2, 3, 3)
    assert largest_error(replace(images, truth=wrong)) == (2, 2, 6)
    wrong[0, 0, 1] = 2
    grey = images.grey.copy()
    grey[:, 0, 0, 1] = 50
    assert largest_error(replace(images, grey=grey)) == (0, 0, 1)  # the others are outside the brain


def test_an_anonymous_section_has_no_case_name_and_a_section_with_names_has(views: list[CaseView]) -> None:
    lost = replace(views[2], images=None, reason="it is gone", detail=f"/data/{views[2].name} <gone>")
    shown = [views[0], views[1], lost]
    anonymous = case_section(shown, anonymous=True)
    assert "validation case, worst of 20" in anonymous
    assert "No images of the best validation case: it is gone." in anonymous
    assert "Phantom" not in anonymous
    named = case_section(shown, anonymous=False)
    assert f"validation case, worst of 20 ({views[0].name})" in named
    assert f"(/data/{views[2].name} &lt;gone&gt;)" in named


def test_a_section_fetches_nothing_and_without_images_has_the_scores_alone(views: list[CaseView]) -> None:
    html = case_section(views, anonymous=True)
    assert re.findall(r"""(?:src|href)=["'](?!data:)|https?://|url\(""", html) == []
    bare = [replace(view, images=None, reason="no images were asked for") for view in views]
    text = case_section(bare, anonymous=True)
    assert "No images: no images were asked for." in text
    assert "<td>0.800</td>" in text
    assert "<script" not in text
    assert case_section([], anonymous=True) == "<p>No case has been scored yet.</p>"


@pytest.fixture
def shown(page: Page, page_log: PageLog, views: list[CaseView], tmp_path: Path) -> Page:
    """The page with the viewer, once its pictures are drawn."""
    file = tmp_path / "cases.html"
    file.write_text(PAGE + case_section(views, anonymous=True) + "</main>")
    page.goto(file.as_uri())
    page.wait_for_selector(".case-interactive[aria-busy=false]")
    assert page_log.requests == [file.as_uri()]
    return page


def pixels(page: Page) -> list[str]:
    """What the three pictures show now, as data: URIs."""
    drawn: list[str] = page.evaluate("[...document.querySelectorAll('.case-picture canvas')].map((c) => c.toDataURL())")
    return drawn


def slices(page: Page) -> list[int]:
    return [int(slider.input_value()) for slider in page.query_selector_all(".case-planes input[type=range]")]


@pytest.mark.slow
def test_sliders_keys_wheel_and_clicks_change_the_pictures(shown: Page, page_log: PageLog) -> None:
    page, before = shown, pixels(shown)
    start = slices(page)
    assert len(set(before)) == 3
    box = page.locator("figure[data-plane=axial] canvas").bounding_box()
    assert box is not None
    page.locator("figure[data-plane=axial] canvas").hover()
    page.mouse.wheel(0, 100)  # the page scrolls, no slice does: the viewer has not got the focus
    page.wait_for_timeout(100)
    assert slices(page) == start
    page.locator("figure[data-plane=axial] canvas").click(position={"x": box["width"] / 4, "y": box["height"] / 4})
    clicked = pixels(page)
    assert all(now != then for now, then in zip(clicked[1:], before[1:], strict=True))  # the other planes have moved
    page.keyboard.press("ArrowUp")
    page.mouse.wheel(0, -100)
    page.wait_for_function(f"document.querySelector('.case-planes input').value == {start[0] + 2}")
    assert pixels(page)[0] != clicked[0]
    text = page.locator("figure[data-plane=axial] input").get_attribute("aria-valuetext")
    assert re.fullmatch(rf"axial slice {start[0] + 2} of \d+, z = -?[\d.]+ mm", text or "")
    for key in "2te":  # modality, truth, errors
        drawn = pixels(page)
        page.keyboard.press(key)
        page.wait_for_function("(before) => document.querySelector('canvas').toDataURL() != before", arg=drawn[0])
    page.keyboard.press("c")
    page.wait_for_function(f"document.querySelector('.case-planes input').value != {start[0] + 2}")
    assert page.locator("input[name=case_viewer-case]:checked").get_attribute("value") == "1"
    assert page_log.errors == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_viewer_has_no_barriers_and_fits_a_phone(shown: Page, page_log: PageLog, scheme: str) -> None:
    shown.emulate_media(color_scheme=scheme)
    assert axe_violations(shown) == []
    shown.set_viewport_size({"width": 360, "height": 700})
    assert shown.evaluate("document.documentElement.scrollWidth") == 360
    assert [figure.is_visible() for figure in shown.query_selector_all(".case-planes figure")] == [True, False, False]
    shown.get_by_label("sagittal", exact=True).check()
    assert [figure.is_visible() for figure in shown.query_selector_all(".case-planes figure")] == [False, False, True]
    shown.wait_for_function("document.querySelector('figure[data-plane=sagittal] figcaption').textContent != ''")
    assert axe_violations(shown) == []
    assert page_log.errors == []


@pytest.mark.slow
def test_scores_without_images_have_no_barriers_either(page: Page, views: list[CaseView], tmp_path: Path) -> None:
    bare = [replace(view, images=None, reason="no images were asked for") for view in views]
    (tmp_path / "scores.html").write_text(PAGE + case_section(bare, anonymous=True) + "</main>")
    page.set_viewport_size({"width": 360, "height": 700})
    page.goto((tmp_path / "scores.html").as_uri())
    assert axe_violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.slow
def test_print_and_a_browser_without_scripts_have_still_pictures(
    browser: object, shown: Page, views: list[CaseView], tmp_path: Path
) -> None:
    stills = ".case-still img"
    assert not shown.locator(stills).first.is_visible()
    shown.emulate_media(media="print")
    assert all(image.is_visible() for image in shown.query_selector_all(stills))
    assert not shown.locator(".case-interactive").is_visible()
    plain = browser.new_context(java_script_enabled=False).new_page()  # type: ignore[attr-defined]
    plain.goto((tmp_path / "cases.html").as_uri())
    assert plain.locator(stills).count() == len(views)
    assert plain.locator(stills).first.is_visible()
    plain.context.close()


@pytest.mark.slow
def test_a_browser_that_falsifies_what_is_read_from_a_canvas_shows_still_pictures(
    page: Page, views: list[CaseView], tmp_path: Path
) -> None:
    page.add_init_script("""
        const read = CanvasRenderingContext2D.prototype.getImageData;
        CanvasRenderingContext2D.prototype.getImageData = function (...args) {
          const image = read.apply(this, args);
          image.data.fill(100);
          return image;
        };""")
    (tmp_path / "cases.html").write_text(PAGE + case_section(views, anonymous=True) + "</main>")
    page.goto((tmp_path / "cases.html").as_uri())
    page.wait_for_selector(".case-failed:not([hidden])")
    assert page.locator(".case-still img").first.is_visible()
    assert not page.locator(".case-interactive").is_visible()
