"""The dashboard in a real browser: live, readable, and deaf to what runs are called."""

import threading
import time
from urllib.parse import quote

import pytest
from chromium import browser_page
from test_telemetry_dashboard import HOSTILE, make_run
from test_telemetry_report_browser import browser_or_skip, luminance

from jaxscale.telemetry.dashboard.runs import Runs
from jaxscale.telemetry.dashboard.server import DashboardServer
from jaxscale.telemetry.metrics import MetricsLog

LONG = "averymuchtoolongname" * 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dashboard") / "runs"
    for number, name in enumerate((*HOSTILE, LONG, "plain")):
        run = make_run(folder / name, steps=30, loss=2.0 + number, config=f"note: {'long-' * 200}")
        (run / "samples").mkdir()
        (run / "samples" / "30.txt").write_text("<img src=https://example.com/x.png>")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with DashboardServer(Runs(folder), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser_page(browser_or_skip(), tmp_path_factory.mktemp("profile")) as page:
        yield page


def both(server, name="plain") -> tuple[str, str]:
    return (
        server.address,
        f"{server.address}run?name={quote(name, safe='', errors='surrogateescape')}",
    )


def wait_for(page, expression: str):
    deadline = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        time.sleep(0.02)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_run_nothing_and_fetch_nothing(page, server, name) -> None:
    for address in both(server, name):
        page.open(address)
        page.evaluate("1")
        assert page.happened("Page.javascriptDialogOpening") == []
        assert page.happened("Log.entryAdded") == []
        assert page.happened("Runtime.exceptionThrown") == []
        asked = [event["request"]["url"] for event in page.happened("Network.requestWillBeSent")]
        assert [url for url in asked if not url.startswith((server.address, "data:"))] == []
        assert page.evaluate("document.images.length") == 0
        assert page.evaluate("[...document.scripts].every(s => s.type || s.src)")


def test_a_name_leads_to_its_run(page, server) -> None:
    """Links of every run, as the browser resolves them, answer with that run's page."""
    page.open(server.address)
    links = page.evaluate(
        "[...document.querySelectorAll('.name a')].map(a => [a.textContent, a.href])"
    )
    assert len(links) == len(HOSTILE) + 2
    for text, link in links:
        page.open(link)
        assert page.evaluate("document.querySelector('h1').textContent") == text


def test_new_records_appear_without_loading_the_page_again(page, server, folder) -> None:
    page.open(both(server)[1])
    page.evaluate("window.stayed = true")
    log = MetricsLog(folder / "plain" / "metrics.jsonl")
    log.write({"step": 31, "loss": 1.0625})
    log.close()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    wait_for(page, "document.querySelector('.tiles').textContent.includes('1.0625')")
    assert page.evaluate("window.stayed")
    # The curves read values off again.
    point_at_loss(page)
    assert page.evaluate("document.querySelector('.cursor').textContent").startswith("step 1")


def test_while_somebody_reads_a_curve_nothing_moves(page, server, folder) -> None:
    page.open(both(server)[1])
    wait_for(page, "!!document.querySelector('script[src=\"/assets/report.js\"]')")
    point_at_loss(page)
    page.evaluate("window.mark = document.querySelector('.plot')")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    time.sleep(0.2)
    assert page.evaluate("window.mark.isConnected && !document.querySelector('.cursor').hidden")


def point_at_loss(page) -> None:
    page.evaluate("document.querySelector('.plot').scrollIntoView({block: 'center'})")
    wait_for(page, "document.querySelectorAll('script').length > 1")
    box = page.evaluate(
        "(r => [r.left + r.width / 2, r.top + r.height / 2])"
        "(document.querySelector('.plot').getBoundingClientRect())"
    )

    def move() -> bool:
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
        return page.evaluate("!document.querySelector('.cursor').hidden")

    deadline = time.monotonic() + 60
    while not move():
        assert time.monotonic() < deadline
        box[0] += 1


def test_ticking_a_run_compares_it(page, server) -> None:
    page.open(f"{server.address}?run=plain")
    assert page.evaluate("document.querySelectorAll('input:checked').length") == 1
    page.events.clear()
    page.evaluate("document.querySelector('input:not(:checked)').click()")
    wait_for(
        page,
        "document.querySelectorAll('.charts').length && location.search.split('run=').length == 3",
    )
    wait_for(page, "document.querySelectorAll('.chart:first-child .legend li').length == 2")


@pytest.mark.parametrize("cut", [{"offline": True}, {"latency": 10**6}], ids=["refuses", "silent"])
def test_a_server_that_is_gone_is_said(page, server, cut) -> None:
    page.open(server.address)
    # Twenty seconds are a long time here.
    page.evaluate(
        "(limit => { AbortSignal.timeout = () => limit(500) })(AbortSignal.timeout.bind(AbortSignal))"
    )
    try:
        pretend(page, **cut)
        wait_for(page, "!document.getElementById('gone').hidden")
    finally:
        pretend(page)
    wait_for(page, "document.getElementById('gone').hidden")


def pretend(page, *, offline: bool = False, latency: int = 0) -> None:
    """The network's state, and a reason to look again at once. latency: ms."""
    page.call(
        "Network.emulateNetworkConditions",
        offline=offline,
        latency=latency,
        downloadThroughput=-1,
        uploadThroughput=-1,
    )
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


@pytest.mark.parametrize("width", [360, 700, 1000, 1280])
def test_nothing_sticks_out_of_the_page(page, server, width) -> None:
    page.call(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=900,
        deviceScaleFactor=1,
        mobile=False,
    )
    for address in both(server, LONG):
        page.open(address)
        widths = page.evaluate("(e => [e.scrollWidth, e.clientWidth])(document.documentElement)")
        assert widths[0] == widths[1] >= width - 20
        # And nothing is cut off inside: no cell of the list is wider than its place, with the longest age, too.
        page.evaluate(
            "document.querySelectorAll('.row .age').forEach(c => { c.textContent = '100 days ago' })"
        )
        assert page.evaluate(
            "[...document.querySelectorAll('.row > *')].every(c => c.scrollWidth <= c.clientWidth + 1)"
        )
    page.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable(page, server, scheme) -> None:
    """Contrast of every kind of text against its card: 4.5 is what WCAG AA asks for."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.call("Emulation.setEmulatedMedia", features=features)
    page.open(server.address)
    selectors = "'.runs', '.row a', '.row.head span', '.row .age', '.row .status', '.kind'"
    card, *texts = page.evaluate(
        f"[{selectors}].map((s, i) => "
        "getComputedStyle(document.querySelector(s))[i ? 'color' : 'backgroundColor'])"
    )
    assert (luminance(card) < 0.1) == (scheme == "dark")
    for text in texts:
        pair = sorted((luminance(card), luminance(text)))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, text
