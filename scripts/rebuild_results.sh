#!/usr/bin/env bash
# Rebuild the reports and pictures in results/ from the raw data beside them, and what README.md and the package state of them.
# Nothing is trained.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

report() { # FOLDER TITLE
    .venv/bin/python scripts/report_comparison.py "results/$1" --title "$2: schedules compared" > /dev/null
}
report finetune Fine-tuning
report scratch "From scratch"
report lora LoRA
report logistic_regression "Logistic regression"
compared=() sizes=() # the sizes are one setting, with a report of its own
for study in trained_start_{300,1200,lora} smollm2 smollm2_lora from_scratch_{300,1200}; do
    if [ -e "results/$study/results.jsonl" ]; then compared+=("results/$study"); fi
done
for results in results/size_*/results.jsonl; do sizes+=("${results%/*}"); done
.venv/bin/python scripts/report_studies.py "${compared[@]}" "${sizes[@]}" --summary results/studies.md > /dev/null
.venv/bin/python scripts/report_sizes.py "${sizes[@]}" --output results/sizes.md
.venv/bin/python scripts/problem_suite.py --report_only --output_dir results/problem_suite --studies "${compared[@]}" > /dev/null
.venv/bin/python scripts/pilot.py --report_only > /dev/null
.venv/bin/python scripts/log_survey.py > /dev/null
.venv/bin/python scripts/figures.py > /dev/null
.venv/bin/python scripts/publish_results.py
git --no-pager diff --stat -- results README.md hf_refined_schedule
