"""What a page does in a headless Chromium, if one is installed."""

import shutil
import subprocess
from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser() -> str | None:
    """The path of a Chromium or Chrome."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


def visit(browser: str, page: str, folder: Path, script: str) -> tuple[str, str]:
    """The document after `script` ran in the page of this HTML, and what the browser logged."""
    file = folder / "visited.html"
    file.write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
    ]
    logs = ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [browser, *options, *logs, "--window-size=600,900", "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout, done.stderr
