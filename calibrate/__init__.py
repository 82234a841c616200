"""calibrate: teaches inspectord a part from known-good frames only."""
