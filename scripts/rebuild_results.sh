#!/usr/bin/env bash
# Rebuild the reports and pictures in results/ from the raw data beside them. Nothing is trained.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

report() { # FOLDER TITLE
    .venv/bin/python scripts/report_comparison.py "results/$1" --title "$2: schedules compared" > /dev/null
}
report finetune Fine-tuning
report scratch "From scratch"
report lora LoRA
report logistic_regression "Logistic regression"
studies=(trained_start_{300,1200,lora} smollm2 smollm2_lora from_scratch_{300,1200} size_{0.1M,0.3M,1M,3M}) # as in the summary
folders=()
for study in "${studies[@]}"; do
    if [ -e "results/$study/forecasts.json" ]; then folders+=("results/$study"); fi
done
.venv/bin/python scripts/report_studies.py "${folders[@]}" --summary results/studies.md > /dev/null
sizes=()
for folder in results/size_*; do
    if [ -e "$folder/schedules.json" ]; then sizes+=("$folder"); fi # finished
done
if [ "${#sizes[@]}" -gt 1 ]; then .venv/bin/python scripts/report_studies.py "${sizes[@]}" --sizes results/sizes.md > /dev/null; fi
tested=()
for folder in "${folders[@]}"; do
    case $folder in results/size_*) ;; *) tested+=("$folder") ;; esac # the sizes are one setting, with a report of its own
done
.venv/bin/python scripts/problem_suite.py --report_only --output_dir results/problem_suite --studies "${tested[@]}" > /dev/null
.venv/bin/python scripts/pilot.py --report_only > /dev/null
.venv/bin/python scripts/figures.py > /dev/null
git --no-pager diff --stat -- results
