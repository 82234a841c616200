"""EfficientAD: a student that learned a teacher's features on good frames alone, and where it fails.

Batzner et al. 2024, "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies".
"""
