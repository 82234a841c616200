"""calibrate: teaches inspectord a part from known-good frames only."""

import inspectord  # noqa: F401, first of all: it keeps openvino from reporting its import
