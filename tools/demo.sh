#!/usr/bin/env bash
# Set up, then train a Mask R-CNN and a DeepLabV3+ with synchronized SN on two processes of two
# images, test them, draw their predictions and importance, and sum up.
#
#     bash tools/demo.sh           # the whole demo
#     bash tools/demo.sh --quick   # the same steps on a handful of images
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

detection=mask-rcnn_r18-sn_fpn_2xb2-3e_scenes
segmentation=deeplabv3plus_r18-d8-sn_2xb2-150_scenes
case "$*" in
    '')
        name=demo scenes=(--train 1040 --val 100)
        det=(epoch_3.pth) seg=(iter_150.pth)
        summary=(--expect)
        ;;
    --quick)
        name=demo-quick scenes=(--train 16 --val 4)
        det=(epoch_1.pth train_cfg.max_epochs=1)
        seg=(iter_4.pth train_cfg.max_iters=4)
        summary=()
        ;;
    *)
        echo "usage: $0 [--quick]" >&2
        exit 2
        ;;
esac

PYTHON=$(bash tools/setup_env.sh)
SCENES=data/$name
export PYTHON SCENES
SECONDS=0

# train_and_test CONFIG CHECKPOINT [KEY=VALUE ...]
train_and_test() {
    local config=configs/demo/$1.py work_dir=$PWD/work_dirs/$name/$1
    local checkpoint=$work_dir/$2 options=("${@:3}")
    [ ${#options[@]} -eq 0 ] || options=(--cfg-options "${options[@]}")
    rm -rf "$work_dir"
    bash tools/dist_train.sh "$config" 2 --work-dir "$work_dir" "${options[@]}"
    bash tools/dist_test.sh "$config" "$checkpoint" 2 --work-dir "$work_dir/test" \
        --show-dir "$work_dir/predictions" "${options[@]}"
    "$PYTHON" -m sn_mm_cli plot-importance "$checkpoint" --logs "$work_dir" \
        --out "$work_dir/importance"
}

"$PYTHON" -m sn_mm_cli make-scenes "$SCENES" --force --layout coco cityscapes --size 128 \
    --digits 2 4 --digit-size 0.28 0.5 "${scenes[@]}"
train_and_test "$detection" "${det[@]}"
train_and_test "$segmentation" "${seg[@]}"
"$PYTHON" tools/misc/summarize_demo.py "work_dirs/$name/$detection" "work_dirs/$name/$segmentation" \
    --seconds $SECONDS "${summary[@]}"
