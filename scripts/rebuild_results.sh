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
.venv/bin/python scripts/report_studies.py $(dirname results/*/forecasts.json | sort -r) --summary results/studies.md > /dev/null
.venv/bin/python scripts/pilot.py --report_only > /dev/null
.venv/bin/python scripts/figures.py > /dev/null
git --no-pager diff --stat -- results
