"""The loop: score, select, remove, prove, report; in one go or between epochs of training."""
