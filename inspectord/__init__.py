"""inspectord: one verdict per trigger, from the camera to the PLC."""

__version__ = "0.1.0"
