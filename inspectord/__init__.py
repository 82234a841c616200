"""inspectord: one verdict per trigger, from the camera to the PLC."""

import sys

__version__ = "0.1.0"

# Importing openvino reports itself to its maker's statistics, unasked, and keeps an id in the home folder.
# Where this module can't be had it does without.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
