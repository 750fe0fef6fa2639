#!/usr/bin/env bash
# hydra-core 1.3.2, hydra-optuna-sweeper 1.3.0, optuna 2.10.1: "n=range(1,3)" on the command line tries 1 and 2 under hydra's
# basic sweeper, and 1, 2 and 3 under hydra/sweeper=optuna.
#
# Behaviour. Hydra's grammar has range(start, stop, step) as Python has it: the stop is not in it. The optuna sweeper hands
# start, stop and step to IntDistribution(low, high) and FloatDistribution(low, high), whose high is in them, and takes nothing
# off. So the same words mean one value more, for floats with a step too, and no line says so.
#
# Output seen:
#   basic:  n 1, 2      x 0.0, 0.5
#   optuna: n 1, 2, 3   x 0.0, 0.5, 1.0
#
# One would have guessed that an override means the same whatever sweeper reads it, as it does for choice(1,2) or 1,2; the
# value that is tried may be one that was left out on purpose (dropout 1.0 of range(0,1,0.5), a layer that does not exist).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check hydra-core==1.3.2 hydra-optuna-sweeper==1.3.0 optuna==2.10.1
cd "$folder"
cat > app.py <<'PYTHON'
import hydra
from hydra.core.config_store import ConfigStore

ConfigStore.instance().store("config", {"n": 0, "x": 0.0, "out": "???"})


@hydra.main(version_base=None, config_path=None, config_name="config")
def main(cfg):
    with open(cfg.out, "a") as f:
        f.write(f"{cfg.n} {cfg.x}\n")
    return float(cfg.n + cfg.x)


main()
PYTHON
words=("n=range(1,3)" "x=range(0,1,0.5)")
"$folder/venv/bin/python" app.py -m "out=$folder/basic" "${words[@]}" > log 2>&1 || { cat log; exit 1; }
"$folder/venv/bin/python" app.py -m "out=$folder/optuna" hydra/sweeper=optuna hydra/sweeper/sampler=random \
  hydra.sweeper.sampler.seed=1 hydra.sweeper.n_trials=30 hydra.sweeper.n_jobs=1 "${words[@]}" > log 2>&1 || { cat log; exit 1; }
tried() { cut -d' ' -f"$2" "$1" | sort -u | paste -sd, | sed 's/,/, /g'; }
echo "basic:  n $(tried basic 1)      x $(tried basic 2)"
echo "optuna: n $(tried optuna 1)   x $(tried optuna 2)"
if [ "$(tried basic 1); $(tried basic 2)" = "1, 2; 0.0, 0.5" ] && [ "$(tried optuna 1); $(tried optuna 2)" = "1, 2, 3; 0.0, 0.5, 1.0" ]
then echo "as described"
else echo "not as described: it has changed"; exit 1
fi
