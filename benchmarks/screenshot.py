"""Take the README's picture of a report page: results/report.png.

    python benchmarks/screenshot.py outputs/RUN

Needs Chromium or Chrome, under one of the names in `BROWSERS`.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from common import RESULTS

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH, HEIGHT = 1000, 760  # pixels of the page, from its top

if __name__ == "__main__":
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    page = Path(sys.argv[-1]).resolve() / "report.html"
    if browser is None or not page.exists():
        sys.exit(f"no browser: install one of {', '.join(BROWSERS)}" if browser is None else f"no {page}: run evaluate.py first")
    options = ("--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}")
    subprocess.run([browser, *options, f"--screenshot={RESULTS / 'report.png'}", page.as_uri()], check=True)
