#!/usr/bin/env bash
# Train an encoder like the bundled one, pixio-robot-ti: examples/bundled_encoder.sh PHOTOS OUT [scale]
# The model card says what differed.
#
# PHOTOS holds CC0 photographs as tar shards, or is "none". Needs the extras metaworld, adroit and dmc, the environment on the
# path (`. .venv/bin/activate`), and some hours of two cores.
# Run it again to resume. scale=tiny takes a minute on toy scenes and checks the installation.
set -euo pipefail
photos=$1 out=$2 scale=${3:-full}
own=(task=metaworld/assembly task=metaworld/bin-picking) demos=6 val_images=256
scenes=metaworld frames=10000 more="metaworld,adroit,toy/reach,dm_control:suite/*.xml" many=12000 drawn=3000
encoder=ti first=4500 second=2334 third=320 fourth=3000 batches=(64 32 32 32)
if [ "$scale" = tiny ]; then
  own=(task=toy/reach) demos=2 val_images=8
  scenes=toy/reach frames=60 more=toy/reach many=60 drawn=20
  encoder=32x2x2 first=4 second=3 third=2 fourth=3 batches=(8 8 8 8)
fi
common=("encoder=$encoder" decoder=128x4x4 "cache=$out/cache" clip=1 workers=0 log_every=50 valid_every=250 save_every=250)
photographs=()
if [ "$photos" != none ]; then photographs=("$photos"); fi
list() { local IFS=,; echo "[$*]"; }

# Frames of scripted demonstrations, 128 px, for the first stage.
recorded=()
for task in "${own[@]}"; do
  file=$out/$(basename "$task").hdf5
  pixio-robot collect "$task" "demos=$demos" valid=0 image_size=128 render=fast "out=$file"
  recorded+=("$file")
done

# Images of all scenes, most in their own look and from their own camera, for the second and third.
pixio-robot render_frames "scenes=$scenes" "frames=$frames" render=[fast] keep_appearance_prob=0.8 scene_camera_prob=0.85 seed=7 "out=$out/frames"
images=$(list "$out/frames" "${photographs[@]}")

# 64 px: as published, but small. Class tokens become different from each other here.
pixio-robot pretrain "images=$(list "${photographs[@]}" "${recorded[@]}")" image_size=64 patch=8 mask_block=2 \
  "batch=${batches[0]}" "steps=$first" lr=1e-3 "val_images=$val_images" "${common[@]}" "out=$out/64px"

# 128 px, raw pixels decoded from the class tokens alone: they learn to say what is where.
pixio-robot pretrain "images=$images" "init_from=$out/64px" image_size=128 patch=16 mask_block=2 mask_ratio=0.5 cls_only=1 \
  norm_pixels=false "batch=${batches[1]}" "steps=$second" lr=7e-4 warmup=0.05 "crop_scale=[0.5,1.0]" "val_images=$val_images" \
  "${common[@]}" "out=$out/128px"

# 256 px.
pixio-robot pretrain "images=$images" "init_from=$out/128px" image_size=256 patch=16 mask_block=2 mask_ratio=0.75 cls_only=1 \
  norm_pixels=false "batch=${batches[2]}" "steps=$third" lr=5e-4 warmup=0.05 "crop_scale=[0.5,1.0]" "val_images=$val_images" \
  "${common[@]}" "out=$out/256px"

# Images of more simulators, in more looks and from more cameras, for the last.
pixio-robot render_frames "scenes=[$more]" "frames=$many" render=[fast] keep_appearance_prob=0.6 scene_camera_prob=0.6 closeup_prob=0.5 clutter=4 seed=11 \
  "out=$out/more-frames"

# 128 px again, with mask blocks of 4 and a new decoder. Used at 256 px it knows places better than after more steps at that size.
pixio-robot pretrain "images=$(list "$out/more-frames" "${photographs[@]}" "procedural:$drawn")" "init_from=$out/256px" image_size=128 \
  patch=16 mask_block=4 mask_ratio=0.5 cls_only=1 norm_pixels=false "batch=${batches[3]}" "steps=$fourth" lr=7e-4 warmup=0.05 \
  "crop_scale=[0.5,1.0]" "val_images=$val_images" "${common[@]}" "out=$out/block4"

python "$(dirname "$0")/package_encoder.py" "$out/block4/encoder.safetensors@256" "$out/pixio-robot-ti.safetensors"
