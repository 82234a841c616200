"""What runs inside the daemon and its camera processes during a fault: see tests/faults/__init__.py."""
