"""The report in a real browser: it draws, reads values off, fits a phone, and asks nobody for anything."""

import math
import os

import pytest
from chromium import browser_page, find_browser

from jaxscale.telemetry.metrics import MetricsLog
from jaxscale.telemetry.report import write_report

HOSTILE = "</pre><script>document.title = 'owned'</script><img src=https://example.com/x.png>"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    log = MetricsLog(run / "metrics.jsonl")
    for step in range(100, 10_100, 100):
        loss = 2 + 8 * math.exp(-step / 2000)
        rates = {"tokens_per_second": 1e5, "step_seconds": 0.5, "data_wait_seconds": 0.1}
        log.write({"step": step, "loss": loss, "grad_norm": 1.0, "learning_rate": 1e-3} | rates)
    log.write({"step": 10_000, "eval_loss": 2.5})
    (run / "samples").mkdir()
    (run / "samples" / "10000.txt").write_text(HOSTILE)
    (run / "config.yaml").write_text(f"note: {'long-' * 200}\n")
    return write_report(run)


def browser_or_skip() -> str:
    """The browser to test in; without one CI fails and others skip."""
    executable = find_browser()
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have chromium, chromium-browser or google-chrome")
        pytest.skip("no chromium, chromium-browser or google-chrome on this machine")
    return executable


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    with browser_page(browser_or_skip(), tmp_path_factory.mktemp("profile")) as page:
        page.open(report)
        yield page


def test_every_chart_is_drawn_with_an_area(page) -> None:
    sizes = page.evaluate(
        "[...document.querySelectorAll('.plot')].map(p => [...p.querySelectorAll('path:not(.grid)')]"
        ".map(path => path.getBoundingClientRect().width))"
    )
    assert len(sizes) == 5  # Loss, learning rate, gradient norm, tokens per second, time of a step.
    assert all(max(widths) > 100 for widths in sizes)


def test_sample_is_text(page) -> None:
    assert page.evaluate("document.querySelector('.sample').textContent") == HOSTILE
    assert page.evaluate("document.title").endswith("training report")
    assert page.evaluate("document.images.length") == 0


def test_pointing_at_one_curve_reads_all_of_them(page) -> None:
    page.evaluate("document.querySelector('.plot').scrollIntoView({block: 'center'})")
    box = page.evaluate(
        "(r => [r.left + r.width / 2, r.top + r.height / 2])"
        "(document.querySelector('.plot').getBoundingClientRect())"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    cursors = page.evaluate(
        "[...document.querySelectorAll('.cursor')].filter(c => !c.hidden).map(c => c.textContent)"
    )
    # The middle of an axis from 0 to 10,000; a pixel is 10 steps.
    assert len(cursors) == 5
    assert abs(int(cursors[0].removeprefix("step ").replace(",", "")) - 5_000) <= 20
    shown = page.evaluate("[...document.querySelectorAll('output')].map(o => o.value)")
    # 2 + 8 exp(-2.5); compute is 0.5 s less 0.1 s of waiting.
    assert shown[0] == f"{2 + 8 * math.exp(-2.5):.4f}"
    assert {"1.00e-03", "100k", "400 ms", "100 ms"} <= set(shown)


def test_the_keyboard_moves_the_cursor(page) -> None:
    page.evaluate("document.querySelector('.plot').focus()")
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="ArrowLeft", code="ArrowLeft")
    cursor = page.evaluate("document.querySelector('.cursor').textContent")
    assert cursor.startswith("step ")
    page.evaluate("document.querySelector('.plot').blur()")
    assert page.evaluate("document.querySelector('.cursor').hidden")
    assert page.evaluate("document.querySelector('output').value") == (
        f"{2 + 8 * math.exp(-5):.4f}"  # The last value again.
    )


def test_charts_have_words_for_those_who_do_not_see_them(page) -> None:
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    images = [
        n["name"]["value"] for n in tree if n.get("role", {}).get("value") in {"image", "img"}
    ]
    assert any(name.startswith("Loss by training step: training from 9.6") for name in images)
    assert len(images) == 5


@pytest.mark.parametrize("width", [360, 400, 1280])
def test_nothing_sticks_out_of_the_page(page, width) -> None:
    page.call(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=900,
        deviceScaleFactor=1,
        mobile=False,
    )
    # The content's width against the window's, both without the scroll bar.
    widths = page.evaluate("(e => [e.scrollWidth, e.clientWidth])(document.documentElement)")
    assert widths[0] == widths[1] >= width - 20
    page.call("Emulation.clearDeviceMetricsOverride")


def test_text_is_readable_in_light_and_dark(page) -> None:
    """Contrast of body text and of the softer text against their cards: 4.5 is what WCAG AA asks for."""
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.call("Emulation.setEmulatedMedia", features=features)
        colors = page.evaluate(
            "['.tile', '.tile dd', '.tile dt'].map((s, i) => "
            "getComputedStyle(document.querySelector(s))[i ? 'color' : 'backgroundColor'])"
        )
        card, ink, soft = (luminance(color) for color in colors)
        assert (card < 0.1) == (scheme == "dark")
        for text in (ink, soft):
            assert (max(card, text) + 0.05) / (min(card, text) + 0.05) >= 4.5


def luminance(color: str) -> float:
    """WCAG 2.1 relative luminance of `rgb(r, g, b)`."""
    channels = [int(part) / 255 for part in color[4:-1].split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_no_errors_and_no_requests_but_the_page_itself(page, report) -> None:
    requested = [event["request"]["url"] for event in page.happened("Network.requestWillBeSent")]
    outside = [url for url in requested if not url.startswith("data:")]
    assert outside == [report.as_uri()]
    assert page.happened("Log.entryAdded") == []
    assert page.happened("Runtime.exceptionThrown") == []
    assert page.happened("Runtime.consoleAPICalled") == []
