#!/usr/bin/env python3
"""Opens reports in headless Chromium, at the width of a phone and of a desk, and says what is wrong with them.

    check_report.py RUN/report.html [--shots FOLDER]    one page: no console message, no request, no dialog, nothing
                                                        wider than the screen; sorts a table; screenshots in slices
    check_report.py --payloads PROGRAM                  a run folder whose ids, groups, replies, labels and names are
                                                        attacks on a page, reported by PROGRAM and opened: nothing runs,
                                                        nothing is asked for, and the texts come back as they went in

Needs Chromium and no Python package; without Chromium it says "skipped" and ends with 0. Speaks the DevTools protocol
over two pipes, so that no port is opened.
"""
import argparse
import base64
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import xml.dom.minidom
import xml.parsers.expat

import report_payloads

WIDTHS = (390, 1280)
SLICE = 2400


class Browser:
    def __init__(self, program, profile):
        to_read, self.to = os.pipe()
        self.source, from_write = os.pipe()
        arguments = [program, "--headless", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
                     "--user-data-dir=" + profile, "--disable-background-networking", "--disable-sync", "about:blank"]
        if os.getuid() == 0:
            arguments.insert(1, "--no-sandbox")

        def place():  # Chromium reads from 3 and writes to 4
            os.dup2(to_read, 13), os.dup2(from_write, 14)
            os.dup2(13, 3), os.dup2(14, 4)

        self.process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        preexec_fn=place, close_fds=False)
        os.close(to_read), os.close(from_write)
        self.rest, self.number, self.events, self.session = b"", 0, [], None
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self.session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(domain + ".enable")

    def message(self, until):
        while b"\0" not in self.rest:
            ready = select.select([self.source], [], [], max(0, until - time.monotonic()))[0]
            if not ready:
                return None
            some = os.read(self.source, 1 << 20)
            if not some:
                raise SystemExit("check_report: Chromium went away")
            self.rest += some
        one, self.rest = self.rest.split(b"\0", 1)
        return json.loads(one)

    def call(self, method, parameters=None):
        self.send(method, parameters or {})
        mine, until = self.number, time.monotonic() + 60
        while True:
            got = self.message(until)
            if got is None:
                raise SystemExit("check_report: no answer to " + method)
            if got.get("id") == mine:
                if "error" in got:
                    raise SystemExit("check_report: %s: %s" % (method, got["error"]))
                return got["result"]
            self.take(got)

    def send(self, method, parameters):
        self.number += 1
        request = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            request["sessionId"] = self.session
        os.write(self.to, json.dumps(request).encode() + b"\0")

    def take(self, event):
        self.events.append(event)
        if event.get("method") == "Page.javascriptDialogOpening":  # it would hold everything else up
            self.send("Page.handleJavaScriptDialog", {"accept": False})

    def wait(self, seconds):
        until = time.monotonic() + seconds
        while (got := self.message(until)) is not None:
            self.take(got)

    def open(self, url, width):
        self.events = []
        self.call("Emulation.setDeviceMetricsOverride",
                  {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600})
        self.call("Page.navigate", {"url": url})
        self.wait(2)
        self.call("Runtime.evaluate", {"expression": "1"})

    def value(self, expression):
        result = self.call("Runtime.evaluate", {"expression": expression, "returnByValue": True})
        if "exceptionDetails" in result:
            raise SystemExit("check_report: " + json.dumps(result["exceptionDetails"]))
        return result["result"].get("value")

    def shoot(self, prefix, width):
        height = self.value("document.documentElement.scrollHeight")
        for i, top in enumerate(range(0, height, SLICE)):
            picture = self.call("Page.captureScreenshot",
                                {"captureBeyondViewport": True,
                                 "clip": {"x": 0, "y": top, "width": width, "height": min(SLICE, height - top),
                                          "scale": 1}})
            with open("%s.%d.%02d.png" % (prefix, width, i), "wb") as file:
                file.write(base64.b64decode(picture["data"]))

    def close(self):
        try:
            self.session = None
            self.call("Browser.close")
        except (SystemExit, OSError):
            pass
        self.process.wait(20)


def complaints(browser, url):
    """What the browser said, asked for or ran that it should not have."""
    found = []
    for event in browser.events:
        method, about = event.get("method"), event.get("params", {})
        if method == "Runtime.consoleAPICalled":
            found.append("console: " + json.dumps(about["args"])[:300])
        elif method == "Log.entryAdded":
            found.append("log: " + about["entry"]["text"][:300])
        elif method == "Runtime.exceptionThrown":
            found.append("exception: " + json.dumps(about["exceptionDetails"])[:300])
        elif method == "Page.javascriptDialogOpening":
            found.append("dialog: " + about["message"][:300])
        elif method == "Network.requestWillBeSent" and about["request"]["url"] != url:
            found.append("request: " + about["request"]["url"][:300])
        elif method in ("Page.frameRequestedNavigation", "Page.windowOpen"):
            found.append(method + ": " + str(about.get("url"))[:300])
    return found


def too_wide(browser, width):
    """The page itself must not scroll sideways; tables and figures scroll in their own boxes."""
    wide = browser.value("document.documentElement.scrollWidth")
    if wide <= width:
        return []
    culprit = browser.value(
        "(function(){var w=document.documentElement.clientWidth,r=[];document.querySelectorAll('body *').forEach("
        "function(e){if(e.closest('.wide,figure,pre'))return;var b=e.getBoundingClientRect();if(b.right>w+1)"
        "r.push(e.tagName+'.'+e.className+' '+e.textContent.slice(0,40))});return r.slice(0,5).join(' | ')})()")
    return ["the page is %d wide on %d: %s" % (wide, width, culprit)]


def sorts(browser):
    """A click on the third head of the first table sorts it; a second turns it over."""
    return browser.value(
        "(function(){var t=document.querySelector('table.s');if(!t||t.tBodies[0].rows.length<2)return [];"
        "function column(){return Array.from(t.tBodies[0].rows).map(function(r){return parseFloat(r.cells[4].textContent)})}"
        "function ordered(a,s){return a.every(function(x,i){return !i||isNaN(x)||s*x>=s*a[i-1]})}"
        "var h=t.tHead.rows[0].cells[4],said=[];h.click();if(!ordered(column(),1))said.push('a table does not sort upwards');"
        "h.click();if(!ordered(column(),-1))said.push('a table does not sort downwards');return said})()")


def check_page(browser, path, shots=None):
    found, url = [], "file://" + os.path.abspath(path)
    if shots:
        os.makedirs(shots, exist_ok=True)
    for width in WIDTHS:
        browser.open(url, width)
        here = complaints(browser, url) + too_wide(browser, width)
        if shots:
            browser.shoot(os.path.join(shots, "report"), width)
        here += sorts(browser)
        found += ["%d px: %s" % (width, text) for text in here]
    return found


def check_svgs(folder):
    """Each figure is XML of its own and holds no script."""
    found = []
    for name in sorted(os.listdir(folder)):
        if name.endswith(".svg"):
            try:
                tree = xml.dom.minidom.parse(os.path.join(folder, name))
            except xml.parsers.expat.ExpatError as error:
                found.append("%s: %s" % (name, error))
                continue
            if tree.getElementsByTagName("script"):
                found.append(name + ": a script")
    return found


def check_control(browser, page, folder):
    """The same page with its policy off and attacks as markup: all that is looked for must be found."""
    text = re.sub("<meta http-equiv=.Content-Security-Policy[^>]*>", "", page)
    attack = "<img src=%sx onerror='console.error(1)'><script>alert(2)</script><p>%s</p>" % (report_payloads.FAR, "w" * 900)
    path = os.path.join(folder, "control.html")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace("<main>", "<main>" + attack, 1))
    url = "file://" + path
    browser.open(url, WIDTHS[0])
    seen = " ".join(complaints(browser, url))
    return ["the control was not caught: " + what for what in ("console:", "dialog:", "request:") if what not in seen]


def check_payloads(browser, program, n_folders, shots=None):
    found = []
    for number in range(n_folders):
        with tempfile.TemporaryDirectory() as folder:
            run = os.path.join(folder, "run")
            replies = report_payloads.make_folder(program, run, number)
            done = subprocess.run([program, "report", run], capture_output=True, text=True, cwd=folder)
            if done.returncode:
                found.append("folder %d: %s" % (number, done.stderr.strip()))
                continue
            page = os.path.join(run, "report.html")
            here = check_page(browser, page, shots if number == 0 else None) + check_svgs(os.path.join(run, "figures"))
            if "are missing" in open(page, encoding="utf-8").read():
                here.append("figures are missing: " + done.stderr.strip())
            expected = [report_payloads.shown(report_payloads.cut(reply, 600)) for reply in replies]
            got = browser.value("Array.from(document.querySelectorAll('.reply')).map(function(e){return e.textContent})")
            if sorted(expected) != sorted(got):
                lost = [text for text in expected if text not in got]
                here.append("%d of %d replies came back otherwise: %s" % (len(lost), len(expected), ascii(lost[:2])[:300]))
            if browser.value("document.title") != "gatetape report":
                here.append("the title changed")
            here += ["%s was made" % name for name in os.listdir(folder) if name != "run"]
            if number == 0:
                here += check_control(browser, open(page, encoding="utf-8").read(), folder)
            found += ["folder %d: %s" % (number, text) for text in here]
    print("%d payloads in %d run folders, %d replies a page" %
          (len(report_payloads.payloads()), n_folders, len(replies)))
    return found


def find_chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return shutil.which(name)
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", nargs="?")
    parser.add_argument("--shots", help="a folder for screenshots")
    parser.add_argument("--payloads", metavar="PROGRAM")
    parser.add_argument("--folders", type=int, default=6, help="run folders of payloads (6)")
    given = parser.parse_args()
    program = find_chromium()
    if not program:
        print("skipped: Chromium is not installed")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        browser = Browser(program, os.path.join(folder, "profile"))
        try:
            found = check_page(browser, given.page, given.shots) if given.page else []
            if given.payloads:
                found += check_payloads(browser, os.path.abspath(given.payloads), given.folders, given.shots)
        finally:
            browser.close()
    for text in found:
        print(ascii(text)[1:-1])
    print("%d complaints" % len(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
