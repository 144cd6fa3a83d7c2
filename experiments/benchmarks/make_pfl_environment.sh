#!/bin/sh
# Make an environment of its own for pfl-research, on the torch of the environment given.
#   sh experiments/benchmarks/make_pfl_environment.sh .venv/bin/python build/pfl
set -eu
python=$1
folder=$2
"$python" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    "pfl==0.6.0" "multiprocess>=0.70.15,<0.71" "dill" "prv-accountant>=0.2,<0.3" \
    "dp-accounting>=0.5,<0.6" "packaging>=24,<26"
# What is not found here (torch, NumPy, SciPy) comes from the environment given.
"$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' \
    > "$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/given.pth"
