"""The page in a real headless Chromium; collected where Debian's `chromium` and `chromium-driver` are installed.

The microphone is Chromium's fake one, which plays a file from when a page begins to listen.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from openai_server import openai_server
from selenium import webdriver
from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import speechllm
from processing_speechllm.audio import load_audio
from speechllm.page.client import Client
from speechllm.page.hearing import Hearing
from speechllm.page.run import shown
from speechllm.page.server import free_port

pytestmark = pytest.mark.slow
EXAMPLES = Path(speechllm.NANO) / "examples"
PATIENCE = 180  # seconds; a machine may be very busy
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--window-size=1280,1200",
    "--use-fake-device-for-media-stream",
)


@contextmanager
def chromium(spoken: Path | None = None):
    """The browser; with a file that its microphone plays once, it allows pages to use that."""
    options = webdriver.ChromeOptions()
    microphone = ["--use-fake-ui-for-media-stream", f"--use-file-for-fake-audio-capture={spoken}%noloop"]
    for flag in (*FLAGS, *(microphone if spoken else [])):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """What a person does with the page."""

    def __init__(self, driver, address: str):
        self.driver = driver
        driver.get(address)
        self.wait(lambda: self.all("#ask"))

    def wait(self, condition):
        """What the condition gives, once it gives something; parts that are replaced meanwhile are looked up anew."""
        stale = [StaleElementReferenceException, ElementClickInterceptedException]
        return WebDriverWait(self.driver, PATIENCE, 0.1, stale).until(lambda driver: condition())

    def all(self, css: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str):
        return self.wait(lambda: self.all(css))[0]

    def click(self, css: str, text: str = "") -> None:
        def clicked() -> bool:
            parts = [part for part in self.all(css) if text in part.text]
            for part in parts[:1]:
                part.click()
            return bool(parts)

        self.wait(clicked)

    def upload(self, path: Path) -> None:
        self.click("#recording button[aria-label='Upload file']")
        self.one("#recording input[type=file]").send_keys(str(path))
        self.wait(lambda: self.all("#recording button[aria-label='Play'], #recording audio"))

    def write(self, text: str) -> None:
        field = self.one("#instruction textarea, #instruction input")
        field.clear()
        field.send_keys(text)

    def ask(self) -> None:
        self.click("#ask")

    def chat(self) -> str:
        return self.one("#chat").text

    def wait_for_answers(self, count: int) -> str:
        """The chat, once so many answers are complete."""
        return self.wait(lambda: (chat := self.chat()).count("all after") >= count and chat)

    def problem(self) -> str:
        return self.wait(lambda: [part.text for part in self.all("#problem .problem") if part.text])[0]


@contextmanager
def stub_page(hearing: Hearing | None = None):
    port = free_port()
    with openai_server() as server, shown(Client(server.base_url), hearing, "127.0.0.1", port):
        yield f"http://127.0.0.1:{port}", server


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    """Two requests with pauses, at the rate of a sound card."""
    pauses = [np.zeros(round(16000 * seconds), dtype=np.float32) for seconds in (1.0, 2.0, 30.0)]
    parts = [
        pauses[0],
        load_audio(str(EXAMPLES / "en.wav")),
        pauses[1],
        load_audio(str(EXAMPLES / "de.wav")),
        pauses[2],
    ]
    path = tmp_path_factory.mktemp("microphone") / "spoken.wav"
    soundfile.write(path, soxr.resample(np.concatenate(parts), 16000, 48000), 48000)
    return path


def test_two_turns_one_uploaded_and_one_without_a_recording_and_errors_between(tmp_path):
    with stub_page(Hearing(speechllm.NANO)) as (address, server), chromium() as driver:
        page = Page(driver, address)
        page.upload(EXAMPLES / "en.wav")
        page.write("What is said?")
        page.ask()
        chat = page.wait_for_answers(1)
        assert "1 messages; 1.5 s at 16000 Hz; What is said?" in chat and "tokens" in chat
        heard = page.one("#transcript textarea, #transcript input")
        page.wait(lambda: heard.get_property("value") == "turn off the radio in the kitchen")

        bad = tmp_path / "letter.wav"
        bad.write_text("Dear Sir or Madam")
        page.upload(bad)
        page.ask()
        assert "letter.wav: is a text file" in page.problem() and len(server.requests) == 1

        page.click("#recording button[aria-label='Clear']")
        server.refusal = (400, {"error": {"message": "The audio is longer than 60 s."}})
        page.write("And now?")
        page.ask()
        page.wait(lambda: "did not take this (400). The audio is longer than 60 s." in page.problem())

        server.refusal = None
        page.ask()
        chat = page.wait_for_answers(2)
        assert "3 messages; And now?" in chat
        page.wait(lambda: not [part for part in page.all("#problem .problem") if part.text])

        page.click("#new")
        page.wait(lambda: "What is said?" not in page.chat())
        page.ask()
        assert "1 messages; And now?" in page.wait_for_answers(1)


def test_a_packaged_recording_is_asked_with_its_own_ideas():
    with stub_page() as (address, server), chromium() as driver:
        page = Page(driver, address)
        page.click("#examples button, #examples .gallery-item", "The company")
        page.wait(lambda: page.all("#recording button[aria-label='Play'], #recording audio"))
        page.click("#ideas button, #ideas .gallery-item", "What does the company make?")
        field = page.one("#instruction textarea, #instruction input")
        page.wait(lambda: field.get_property("value") == "What does the company make?")
        page.ask()
        assert "s at 16000 Hz; What does the company make?" in page.wait_for_answers(1)
        assert not page.all("#transcript textarea")


def test_the_microphone_records(spoken):
    with stub_page() as (address, server), chromium(spoken) as driver:
        page = Page(driver, address)
        page.click("#recording button", "Record")
        time.sleep(4)  # the first request is over
        assert not page.one("#ask").is_enabled()
        page.click("#recording button", "Stop")
        page.wait(lambda: page.one("#ask").is_enabled())
        page.ask()
        page.wait_for_answers(1)
        samples = load_audio(server.requests[0]["messages"][0]["content"][0]["input_audio"])
        assert len(samples) > 3 * 16000 and np.abs(samples).max() > 0.05


def test_live_speech_is_sent_whenever_the_speaker_pauses(spoken):
    with stub_page() as (address, server), chromium(spoken) as driver:
        page = Page(driver, address)
        page.click("button[role=tab]", "Live")
        page.click("#listen", "Start")
        page.wait_for_answers(2)
        assert page.one("#live-status").text in ("Listening.", "Your turn is sent.")
        page.click("#listen", "Stop")
        page.wait(lambda: page.one("#live-status").text == "The microphone is off.")
        page.wait(lambda: page.one("#listen").text == "Start listening")
        turns = [load_audio(request["messages"][-1]["content"][0]["input_audio"]) for request in server.requests]
        assert len(turns) == 2 and [len(request["messages"]) for request in server.requests] == [1, 3]
        for turn, name in zip(turns, ("en.wav", "de.wav"), strict=True):
            assert len(turn) == pytest.approx(len(load_audio(str(EXAMPLES / name))), abs=8000)


def test_a_microphone_that_is_not_allowed_is_told():
    with stub_page() as (address, _), chromium() as driver:
        driver.execute_cdp_cmd(
            "Browser.setPermission", {"permission": {"name": "microphone"}, "setting": "denied", "origin": address}
        )
        page = Page(driver, address)
        page.click("button[role=tab]", "Live")
        page.click("#listen", "Start")
        page.wait(lambda: "does not allow this page to use the microphone" in page.one("#live-status").text)
        assert page.one("#listen").text == "Start listening"


def test_nothing_is_fetched_from_elsewhere():
    with stub_page() as (address, _), chromium() as driver:
        page = Page(driver, address)
        page.write("Hello?")
        page.ask()
        page.wait_for_answers(1)
        sent = [
            entry["message"]
            for entry in driver.get_log("performance")
            if "Network.requestWillBeSent" in entry["message"]
        ]
        foreign = [message for message in sent if '"url":"http' in message and f'"url":"{address}' not in message]
        assert sent and not [message for message in foreign if f'"url":"blob:{address}' not in message]


def test_the_command_serves_the_embedded_model_and_shows_the_page():
    port = free_port()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "speechllm_cli", "demo", "--web", "--model", "nano", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if line.startswith("The page is at"):
                break
        with chromium() as driver:
            page = Page(driver, f"http://127.0.0.1:{port}")
            page.click("#examples button, #examples .gallery-item", "English")
            page.wait(lambda: page.all("#recording button[aria-label='Play'], #recording audio"))
            page.ask()
            assert "turn off the radio in the kitchen" in page.wait_for_answers(1)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
        process.stdout.close()
    assert process.returncode == 128 + signal.SIGTERM
