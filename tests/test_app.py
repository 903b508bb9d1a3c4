"""The web page of app.py in a real browser."""

import contextlib
import json
import shutil
from functools import partial

import pandas as pd
import pytest
from conftest import make_rows
from page import answer as page_answer
from page import request, serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def app(tmp_path):
    """Return a function that starts the page of a run folder, and returns its address."""
    pytest.importorskip("gradio")
    with contextlib.ExitStack() as stack:
        yield lambda run: stack.enter_context(serving(run, tmp_path))


@pytest.fixture
def page(app):
    """Return a function that starts the page of a run folder and opens it in a browser."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    playwright = pytest.importorskip("playwright.sync_api")

    def open_page(run: str):
        page = browser.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page()
        page.set_default_timeout(60_000)
        page.goto(app(run))

        def ask(text: str) -> None:
            page.get_by_label("Text").first.fill(text)
            page.get_by_role("button", name="Go", exact=True).click()

        return page, ask, playwright.expect

    with playwright.sync_playwright() as browser:
        playwright.expect.set_options(timeout=60_000)
        yield open_page


def test_the_page_shows_the_label_of_a_review_and_markup_as_text(page, call, tiny_flags):
    assert call("fine_tune.py", *tiny_flags).code == 0
    page, ask, expect = page("outputs/run")
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    for row in make_rows(4).itertuples():
        ask(row.review)
        expect(page.get_by_test_id("label-output-value")).to_have_text(row.sentiment)
    ask("<img src=x onerror=alert(1)> great <script>alert(2)</script> cast")
    expect(page.get_by_text("onerror", exact=True)).to_be_visible()
    assert not dialogs and page.locator("img[src=x]").count() == 0
    ask("   ")
    expect(page.get_by_text("Type a text first.")).to_be_visible()
    ask("great " * 3000)
    expect(page.get_by_text("great", exact=True)).to_have_count(30)  # 32 tokens, two of them special


def test_entities_are_highlighted_where_predict_finds_them(page, call, tiny_flags, tmp_path):
    sentences = [[("a", "O"), ("film", "O"), (str(i % 60), "B-NUM"), ("we", "O"), (str(i), "B-NUM")] for i in range(90)]
    lines = "\n\n".join("\n".join(" ".join(word) for word in sentence) for sentence in sentences)
    (tmp_path / "numbers.conll").write_text(lines)
    flags = [*tiny_flags, "--task", "token-classification", "--dataset_name", tmp_path / "numbers.conll"]
    assert call("fine_tune.py", *flags).code == 0
    text = "a film <b>the</b> cast 12 we 31"
    entities = json.loads(call("predict.py", "--json", text).out)["entities"]
    page, ask, expect = page("outputs/run")
    ask(text)
    for entity in entities:
        expect(page.locator("#highlight").get_by_text(entity["text"], exact=True).first).to_be_visible()
    expect(page.locator("#highlight").get_by_text("NUM", exact=True)).to_have_count(len(entities))
    assert entities and page.locator("b", has_text="the").count() == 0


def test_the_page_shows_the_number_that_predict_prints(page, call, tiny_flags, tmp_path):
    rows = make_rows()
    pd.DataFrame({"text": rows.review, "label": [i % 7 / 2 for i in range(80)]}).to_csv(tmp_path / "numbers.csv", index=False)
    flags = ["--dataset_name", "numbers.csv", "--problem_type", "regression", "--num_train_epochs", 1]
    trained = call("fine_tune.py", *tiny_flags, *flags)
    assert trained.code == 0, trained.err
    value = json.loads(call("predict.py", "--json", rows.review[0]).out)["prediction"]
    page, ask, expect = page("outputs/run")
    ask(rows.review[0])
    expect(page.get_by_label("Predicted value")).to_have_value(f"{value:.6g}")


def test_requests_that_make_no_sense_leave_no_traceback(app, finished_run, tmp_path):
    address = app("outputs/run")
    answer, ask = partial(page_answer, address), partial(request, address)
    assert "event: complete" in answer("a fine film") and "event: complete" in answer("\ud800 film")
    assert "event: complete" in answer("a " * 10_000)
    assert "at most 20,000" in answer("a " * 10_000 + "b")
    for value in (None, [], {}, "", " \n", 5, [["a"] * 10]):
        answer(value)
    for path in ("call/answer", "call/nothing", "queue/join", "run/predict", "component_server"):
        for body in (b"{", b"\xff", [1], {"data": "x"}, {"data": ["a"], "fn_index": 99, "component_id": 99, "fn_name": "x"}):
            ask(path, body)
    upload = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n' + b"0" * 2_000_000 + b"\r\n--b--\r\n"
    assert ask("upload", upload, "multipart/form-data; boundary=b")[0] == 413
    assert "Traceback" not in (tmp_path / "app.out").read_text()


def test_the_page_of_a_model_that_answers_prompts_is_a_chat(app, call, chat_run):
    address = app("outputs/run")
    for system, flags in (("", []), ("wise", ["--system", "wise"])):
        (expected,) = call("predict.py", "a film 3", *flags).out.splitlines()
        event = json.loads(request(address, "call/chat", {"data": ["a film 3", system]})[1])["event_id"]
        assert json.dumps(expected) in request(address, f"call/chat/{event}", None)[1].rpartition("event: complete")[2]
    event = json.loads(request(address, "call/chat", {"data": ["  ", 5]})[1])["event_id"]
    assert "event: error" in request(address, f"call/chat/{event}", None)[1]
