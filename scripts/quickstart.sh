#!/usr/bin/env bash
# The method on a laptop: pretrain a small model on CPython's source, fine-tune it on Python's help texts with linear decay and
# record the norms, refine the schedule from them, fine-tune again with the refined schedules, and compare.
#   STEPS=300 PRETRAIN_STEPS=2400 bash scripts/quickstart.sh
# scripts/run_clm.py does all the training, as it would on your data. A finished run is not repeated.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

steps=${STEPS:-300}
pretrain_steps=${PRETRAIN_STEPS:-2400}
read -ra peaks <<< "${PEAKS:-2e-3 4e-3 8e-3}"
out=${OUT:-runs/quickstart_${steps}_steps}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true

train() { # FOLDER OPTIONS...: run run_clm.py, unless the run has finished
    local folder=$out/$1
    shift
    if [ -e "$folder/eval_results.json" ]; then
        echo "== $folder is finished"
        return
    fi
    echo "== $folder"
    .venv/bin/python scripts/run_clm.py --output_dir "$folder" --do_train --do_eval --block_size 64 \
        --per_device_train_batch_size 8 --logging_steps 10 --save_strategy no --report_to none --dataloader_pin_memory false "$@"
}

finetune() { # FOLDER PEAK OPTIONS...: train the pretrained model on the English text
    local folder=$1 peak=$2
    shift 2
    train "$folder" --model_name_or_path "$out/pretrained" --builtin_text english --validation_split_percentage 10 \
        --max_steps "$steps" --learning_rate "$peak" "$@"
}

train pretrained --config_overrides n_embd=96,n_layer=2,n_head=4,n_positions=64 --vocab_size 1024 \
    --builtin_text python_source --max_eval_samples 200 --max_steps "$pretrain_steps" --learning_rate 3e-3 --warmup_steps 0.05

for peak in "${peaks[@]}"; do
    finetune "linear_$peak" "$peak" --lr_scheduler_type linear
    finetune "linear_warmup_$peak" "$peak" --lr_scheduler_type linear --warmup_steps 0.05
    finetune "cosine_warmup_$peak" "$peak" --lr_scheduler_type cosine --warmup_steps 0.05
done

baseline=$out/linear_${peaks[${#peaks[@]} / 2]}
.venv/bin/hf-refined-schedule check "$baseline"
.venv/bin/hf-refined-schedule refine "$baseline" -o "$out/schedule.json"
.venv/bin/hf-refined-schedule plot "$baseline" -o "$out/norms_and_schedule.png"

for peak in "${peaks[@]}"; do
    finetune "refined_$peak" "$peak" --lr_scheduler_type refined --refined_from "$baseline"
    finetune "bounded_warmup_$peak" "$peak" --lr_scheduler_type refined --refined_from "$baseline" --refined_bounded_warmup
done

.venv/bin/python scripts/quickstart_report.py "$out" --schedules linear linear_warmup cosine_warmup refined bounded_warmup --peaks "${peaks[@]}"
