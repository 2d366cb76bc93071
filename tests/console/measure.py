"""What open consoles cost the gateway: the processor time of its process, without any and with ten.

    scripts/test-console --measure

Each console is a real page in a browser. The figure is that of docs/console.md. No test: it depends on the machine.
"""

import os
import sys
import time
from pathlib import Path

from tests.gateway_process import ADMIN_TOKEN, ROOT, Gateway, gateway_process

sys.path.append(str(ROOT / "var/console/python"))
from playwright.sync_api import sync_playwright

CONSOLES = 10
SECONDS = 60
SETTLE_S = 15


def cpu_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percent(gateway: Gateway) -> float:
    """Of one core, for a while."""
    pid = gateway.pid("gateway")
    assert pid is not None
    used_s, began_s = cpu_s(pid), time.monotonic()
    time.sleep(SECONDS)
    return 100 * (cpu_s(pid) - used_s) / (time.monotonic() - began_s)


def main() -> None:
    with gateway_process(GATEWAY_JOURNAL_INTERVAL_S="1") as gateway, sync_playwright() as playwright:
        gateway.start()
        collection = gateway.client().create_collection("measured", embedding_function=None)
        collection.add(ids=[str(each) for each in range(1000)], embeddings=[[float(each), 1.0] for each in range(1000)])
        gateway.snapshot()
        time.sleep(SETTLE_S)
        none = percent(gateway)
        browser = playwright.chromium.launch(executable_path=os.environ["CONSOLE_BROWSER"])
        for number in range(CONSOLES):
            page = browser.new_context().new_page()
            page.goto(f"{gateway.url}/console#/{('overview', 'jobs', 'timeline', 'collections')[number % 4]}")
            page.get_by_label("Key").fill(ADMIN_TOKEN)
            page.get_by_role("button", name="Sign in").click()
            page.get_by_text("Live", exact=True).wait_for(state="attached")
        time.sleep(SETTLE_S)
        many = percent(gateway)
        browser.close()
        gateway.stop()
    print(
        f"without a console {none:.2f} %, with {CONSOLES} {many:.2f} % of one core: {many - none:.2f} % for {CONSOLES}"
    )


if __name__ == "__main__":
    main()
