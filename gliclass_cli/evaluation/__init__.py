"""Evaluation: how right, and how sure of it, predictions are on rows whose right labels are known.

rows     reads right labels and stored predictions, or runs the model; all rows as arrays
report   the arrays as metrics: accuracy, F1, calibration, confusion
tuning   learns temperature, bias and thresholds from the arrays
"""
