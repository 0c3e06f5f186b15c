"""Stands in for `accelerate`, `torchrun` and the commands of SLURM: records its arguments, and starts what they would start.

python cluster_stub.py NAME [ARGUMENTS ...]
"""

import json
import os
import subprocess
import sys
import time


def main():
    name, *arguments = sys.argv[1:]
    with open(os.environ["RECORD"], "a") as record:
        record.write(json.dumps([name, arguments, os.environ.get("SLURM_NODEID")]) + "\n")
    if name == "sbatch":
        job = {
            "SLURM_JOB_ID": "31234", "SLURM_JOB_NODELIST": "gpu[07-08]", "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "64",
        }  # fmt: skip
        os.execvpe("bash", ["bash", *arguments], {**os.environ, **job})
    elif name == "scontrol" and arguments == ["show", "hostnames", "gpu[07-08]"]:
        print("gpu07\ngpu08")
    elif name == "srun":
        assert os.environ["SRUN_CPUS_PER_TASK"] == "64"
        time.sleep(float(os.environ.get("SRUN_SECONDS", "0")))
        while arguments[0].startswith("--"):
            del arguments[0]
        for node in range(2):
            subprocess.run(arguments, env={**os.environ, "SLURM_NODEID": str(node)}, check=True)
        sys.exit(int(os.environ.get("SRUN_STATUS", "0")))


if __name__ == "__main__":
    main()
