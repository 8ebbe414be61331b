#!/usr/bin/env bash
# How pixio-robot-ti, the bundled encoder, was made: examples/bundled_encoder.sh PHOTOS OUT [scale]
#
# PHOTOS holds CC0 photographs as tar shards, or is "none". Needs the extras metaworld, dmc, adroit and curation. Run it
# again to go on after a stop. With scale=tiny, a minute on toy scenes shows that everything is in place.
set -euo pipefail
photos=$1 out=$2 scale=${3:-full}
adroit=gymnasium_robotics:envs/assets/adroit_hand/adroit_
scenes="[metaworld,dm_control:suite/*.xml,${adroit}door.xml,${adroit}hammer.xml,${adroit}pen.xml,${adroit}relocate.xml]"
frames=15000 drawn=3000 first=3600 second=400 batch=64 encoder=ti held_out=256
if [ "$scale" = tiny ]; then
  scenes=toy/reach frames=60 drawn=20 first=4 second=2 batch=8 encoder=32x2x2 held_out=8
fi
images=$out/frames
if [ "$photos" != none ]; then images=$out/frames,$photos; fi
common=(decoder=128x4x4 patch=16 "encoder=$encoder" "batch=$batch" "held_out=$held_out" clip=1 "cache=$out/cache"
  workers=0 log_every=50 valid_every=600 picture_every=1200 save_every=300)

pixio-robot render_frames "scenes=$scenes" "frames=$frames" "out=$out/frames"

# Most images are seen at 128 px, where a step costs a quarter: crops from a whole view to the scale of the second stage.
pixio-robot pretrain "images=[$images,procedural:$drawn]" image_size=128 mask_block=2 "steps=$first" lr=1e-3 \
  "crop_scale=[0.15,1.0]" "${common[@]}" "out=$out/128px"

# What is easy by now is shown less often.
pixio-robot score "images=[$images]" "model=$out/128px" masks=1 "out=$out/scores"
pixio-robot curate "scores=$out/scores" "images=[$images]" least_side=0 "out=$out/curated"

# Whole views at the size the encoder is used at.
pixio-robot pretrain "images=[$images]" "weights=$out/curated/weights.parquet" "start=$out/128px" image_size=256 \
  mask_block=4 "steps=$second" lr=5e-4 "crop_scale=[0.5,1.0]" "${common[@]}" "out=$out/256px"

python "$(dirname "$0")/package_encoder.py" "$out/256px/encoder.safetensors" "$out/pixio-robot-ti.safetensors"
