"""The page, in a real browser."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from conftest import ROOT, make_rows

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def page(tmp_path):
    """What starts the page of a run folder and opens it in a browser."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1"}
    started = []

    def open_page(run: str):
        command = [sys.executable, str(ROOT / "app.py"), run]
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True))
        assert any("Running on local URL" in line for line in started[0].stdout)
        page = browser.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page()
        page.goto(f"http://127.0.0.1:{port}")

        def ask(text: str) -> None:
            page.get_by_label("Text", exact=True).fill(text)
            page.get_by_role("button", name="Go", exact=True).click()

        return page, ask, playwright.expect

    with playwright.sync_playwright() as browser:
        yield open_page
        for process in started:
            process.kill()


def test_a_review_is_judged_and_markup_is_text(page, call, tiny_flags):
    assert call("fine_tune.py", *tiny_flags).code == 0
    page, judge, expect = page("outputs/run")
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    for row in make_rows(4).itertuples():
        judge(row.review)
        expect(page.get_by_test_id("label-output-value")).to_have_text(row.sentiment)
    judge("<img src=x onerror=alert(1)> great <script>alert(2)</script> cast")
    expect(page.get_by_text("onerror", exact=True)).to_be_visible()
    assert not dialogs and page.locator("img[src=x]").count() == 0
    judge("   ")
    expect(page.get_by_text("Type a text first.")).to_be_visible()
    judge("great " * 3000)
    expect(page.get_by_text("great", exact=True)).to_have_count(30)  # 32 tokens with the special ones


def test_entities_are_highlighted_where_predict_finds_them(page, call, tiny_flags, tmp_path):
    sentences = [[("a", "O"), ("film", "O"), (str(i % 60), "B-NUM"), ("we", "O"), (str(i), "B-NUM")] for i in range(90)]
    lines = "\n\n".join("\n".join(" ".join(word) for word in sentence) for sentence in sentences)
    (tmp_path / "numbers.conll").write_text(lines)
    flags = [*tiny_flags, "--task", "token-classification", "--dataset_name", tmp_path / "numbers.conll"]
    assert call("fine_tune.py", *flags).code == 0
    text = "a film <b>the</b> cast 12 we 31"
    said = json.loads(call("predict.py", "--json", text).out)["entities"]
    page, ask, expect = page("outputs/run")
    ask(text)
    for one in said:
        expect(page.locator("#entities").get_by_text(one["text"], exact=True).first).to_be_visible()
    expect(page.locator("#entities").get_by_text("NUM", exact=True)).to_have_count(len(said))
    assert said and page.locator("b", has_text="the").count() == 0
