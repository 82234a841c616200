"""In the daemon: its boot_id in the log, so that camera processes can be told to whom they belong."""

from __future__ import annotations

from typing import Any

from injected import bugs, orders


def wrap(module: Any) -> None:
    """Wrap Daemon.__init__ of inspectord.daemon, whose import comes after all others."""
    bugs.plant(orders.line().get("bug"))
    real = module.Daemon.__init__

    def logged_init(self: Any, settings: Any) -> None:
        real(self, settings)
        orders.Log("daemon", "boot").write(event="boot", boot_id=self.boot_id)

    module.Daemon.__init__ = logged_init
