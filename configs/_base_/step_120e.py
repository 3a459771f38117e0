"""120 epochs, the rate divided by 10 after 30, 60 and 90."""

_base_ = './step_100e.py'

train_cfg = dict(max_epochs=120)
