#!/usr/bin/env bash
# All initializers on students of random teachers (Evci et al., ICLR 2022): growkit compare, three times.
#     bash experiments/teacher_student.sh FOLDER
set -euo pipefail
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
recipe=experiments/mlp_teacher_student.yaml

# an arm: its initializer, the student's first width, settings of the initializer
arm() { echo "$1=$recipe model.hidden=[$2] growth.initializer=$1 ${*:3}"; }
scale=growth.initializer.scale=1.0
batch=growth.initializer.batch_size=1000
shared=(--baselines small --also-seed data.teacher_seed --match steps --split train --against random run.tensorboard=false)

all() { # first width, full width
  printf '%s\n' "gradmax=$recipe model.hidden=[$1]" "$(arm random "$1" $scale)" \
    "$(arm gradmax_inverse "$1" $scale $batch)" "$(arm gradmax_opt "$1" $scale $batch)" \
    "$(arm random_positive "$1" $scale)" "$(arm variance_transfer "$1")" "$(arm net2wider "$1" $batch)" \
    "$(arm firefly "$1" $scale $batch growth.initializer.epsilon=1.0)" "$(arm tiny "$1" $batch)" \
    "$(arm zero "$1" $scale)" "big=$recipe model.hidden=[$2] growth.when=never"
}

mapfile -t arms < <(all 5 10)
growkit compare "${arms[@]}" "${shared[@]}" --seeds 10 --out "$1/20-10-10"

mapfile -t arms < <(all 25 50)
growkit compare "${arms[@]}" "${shared[@]}" --seeds 5 --out "$1/100-50-10" \
  'data.widths=[100,50,10]' growth.how_many.units=5

growkit compare "gradmax=$recipe" "$(arm random 5 $scale)" "$(arm splitting 5 $batch)" \
  "big=$recipe model.hidden=[10] growth.when=never" "${shared[@]}" --seeds 5 --out "$1/20-10-10-gelu" model.activation=gelu
