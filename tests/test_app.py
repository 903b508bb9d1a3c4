"""The page, in a real browser."""

import os
import shutil
import socket
import subprocess
import sys

import pytest
from conftest import ROOT, make_rows

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_review_is_judged_and_markup_is_text(call, tiny_flags, tmp_path):
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    assert call("fine_tune.py", *tiny_flags).code == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1"}
    app = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py"), "outputs/run"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert any("Running on local URL" in line for line in app.stdout)
        with playwright.sync_playwright() as p:
            page = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page()
            dialogs = []
            page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
            page.goto(f"http://127.0.0.1:{port}")

            def judge(text: str) -> None:
                page.get_by_label("Text", exact=True).fill(text)
                page.get_by_role("button", name="Go", exact=True).click()

            for row in make_rows(4).itertuples():
                judge(row.review)
                playwright.expect(page.get_by_test_id("label-output-value")).to_have_text(row.sentiment)
            judge("<img src=x onerror=alert(1)> great <script>alert(2)</script> cast")
            playwright.expect(page.get_by_text("onerror", exact=True)).to_be_visible()
            assert not dialogs and page.locator("img[src=x]").count() == 0
            judge("   ")
            playwright.expect(page.get_by_text("Type a text first.")).to_be_visible()
            judge("great " * 3000)
            playwright.expect(page.get_by_text("great", exact=True)).to_have_count(30)  # 32 tokens with the special ones
    finally:
        app.kill()
