#!/usr/bin/env bash
# The main job on the embedded data, from nothing: set everything up, make the data, train on two processes, evaluate,
# report. A repetition skips the set-up and trains anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

config=configs/mask_rcnn_xbn_r50_digits.py
work_dir=work_dirs/mask_rcnn_xbn_r50_digits

source tools/enter_env.sh
set_up=$SECONDS
python tools/make_digits.py data/digits
tools/dist_train.sh "$config" 2
tools/dist_test.sh "$config" "$(cat "$work_dir/last_checkpoint")" 2
python tools/report.py "$work_dir"

echo "Report: $PWD/$work_dir/report.html"
echo "Set-up took $set_up s; data, training, evaluation and report $((SECONDS - set_up)) s"
