"""Starts Streamlit with `page.py`. Arguments go to Streamlit."""

import sys
from pathlib import Path

from streamlit.web.cli import main

page = str(Path(__file__).with_name("page.py"))
options = [
    *("--server.address=127.0.0.1", "--server.headless=true"),
    *("--browser.gatherUsageStats=false", "--client.toolbarMode=minimal"),
]
sys.argv = ["streamlit", "run", page, *options, *sys.argv[1:]]
main()
