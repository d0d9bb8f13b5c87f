#!/usr/bin/env python3
"""Opens the page of the admin port in a real headless browser, checks it, and takes a picture.

    tools/page_check.py --addr 127.0.0.1:9464 --token-file admin.token [--seconds 12] [--dark] [--out page.png]

It needs Chromium (Debian: apt-get install chromium; another one: CHROMIUM=/path) and nothing else: the browser
is spoken to over its debugging pipe. Checked: the page asks for a token and takes none that is wrong; with the
right one it shows cores and as many plots as it has; nothing is logged as an error, nothing is blocked by the
page's own policy, nothing is asked of any other address. Exit code: 0 all well, 1 not, 3 no browser.
"""

import argparse
import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

ANSWER_S = 60


class Browser:
    def __init__(self, program, profile, size):
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        self.read, self.write = ours_in, ours_out
        self.pending, self.events, self.next = b"", [], 1

        def wire():
            # To high numbers first: one of the pipe's ends may be 3 or 4 itself.
            os.dup2(theirs_in, 103)
            os.dup2(theirs_out, 104)
            os.dup2(103, 3)
            os.dup2(104, 4)

        arguments = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--hide-scrollbars", "--remote-debugging-pipe", "--no-first-run",
                     "--disable-background-networking", f"--window-size={size}",
                     f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(arguments, preexec_fn=wire, close_fds=False,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)

    def receive(self, seconds):
        deadline = time.monotonic() + seconds
        while b"\0" not in self.pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.read], [], [], left)[0]:
                return None
            more = os.read(self.read, 1 << 16)
            if not more:
                raise SystemExit("page_check: the browser ended by itself")
            self.pending += more
        message, _, self.pending = self.pending.partition(b"\0")
        return json.loads(message)

    def call(self, method, session=None, **parameters):
        number, self.next = self.next, self.next + 1
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive(ANSWER_S)
            if answer is None:
                raise SystemExit(f"page_check: the browser does not answer {method}")
            if answer.get("id") == number:
                if "error" in answer:
                    raise SystemExit(f"page_check: {method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def rest(self, seconds):
        """Time passes, as it does for who watches."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            event = self.receive(left)
            if event:
                self.events.append(event)

    def end(self):
        self.process.terminate()
        self.process.wait()


def complaints(events, address, expected):
    found = []
    for event in events:
        kind, what = event.get("method"), event.get("params", {})
        if kind == "Runtime.exceptionThrown":
            found.append("an exception: " + what["exceptionDetails"].get("text", ""))
        elif kind == "Log.entryAdded" and what["entry"]["level"] == "error":
            text = what["entry"]["text"]
            if not any(part in text for part in expected):
                found.append("an error: " + text + " " + what["entry"].get("url", ""))
        elif kind == "Network.requestWillBeSent":
            url = what["request"]["url"]
            if not url.startswith((f"http://{address}/", "about:", "data:")):
                found.append("asked elsewhere: " + url)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--addr", required=True)
    parser.add_argument("--token-file", required=True)
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--size", default="1280,1000")
    parser.add_argument("--out")
    options = parser.parse_args()
    wanted = os.environ.get("CHROMIUM")
    program = wanted or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not program:
        print("page_check: there is no Chromium; install it (apt-get install chromium) or set CHROMIUM")
        return 3
    with open(options.token_file, encoding="ascii") as file:
        token = file.read().strip()

    with tempfile.TemporaryDirectory(prefix="iris-page-", ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile, options.size)
        try:
            target = browser.call("Target.createTarget", url="about:blank")["targetId"]
            session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Runtime", "Log", "Network", "Page"):
                browser.call(domain + ".enable", session)
            if options.dark:
                features = [{"name": "prefers-color-scheme", "value": "dark"}]
                browser.call("Emulation.setEmulatedMedia", session, features=features)

            def ask(expression):
                result = browser.call("Runtime.evaluate", session, expression=expression)
                return result["result"].get("value")

            def until(what, expression, seconds=20):
                deadline = time.monotonic() + seconds
                while not ask(expression):
                    if time.monotonic() > deadline:
                        raise SystemExit(f"page_check: not {what}: {ask('document.body.innerText')}")
                    browser.rest(0.1)

            browser.call("Page.navigate", session, url=f"http://{options.addr}/")
            until("asking for a token", "!document.getElementById('ask').hidden")
            ask("document.getElementById('token').value = 'wrong';"
                "document.getElementById('form').requestSubmit()")
            until("refusing a wrong token",
                  "document.getElementById('state').textContent.includes('not the right one')")
            ask(f"document.getElementById('token').value = {json.dumps(token)};"
                "document.getElementById('form').requestSubmit()")
            until("showing", "!document.getElementById('all').hidden")
            browser.rest(options.seconds)
            until("two rows of cores", "document.querySelectorAll('#cores tr').length >= 3")
            until("plots", "document.querySelectorAll('#plots svg').length >= 6")
            until("lines in plots", "document.querySelectorAll('#plots polyline').length >= 4")
            if ask("location.href").find(token) >= 0 or ask("document.body.innerHTML").find(token) >= 0:
                raise SystemExit("page_check: the token is in the page")
            if options.out:
                size = browser.call("Page.getLayoutMetrics", session)["cssContentSize"]
                clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
                shot = browser.call("Page.captureScreenshot", session, clip=clip, captureBeyondViewport=True)
                with open(options.out, "wb") as file:
                    file.write(base64.b64decode(shot["data"]))
            # The two refusals above are in the log, as they should be; so is the icon that nobody has.
            found = complaints(browser.events, options.addr, ["status of 401", "status of 404"])
            for line in found:
                print("page_check: " + line)
            print("page_check: " + str(ask("document.getElementById('state').textContent")))
            return 1 if found else 0
        finally:
            browser.end()


if __name__ == "__main__":
    sys.exit(main())
