# Set the environment up and put its commands first: `source tools/enter_env.sh` in the repository's root.
# MMNORM_SET=classic takes that set of OpenMMLab packages, in an environment of its own, .venv-classic.
env=.venv${MMNORM_SET:+-$MMNORM_SET}
python3 tools/setup_env.py --env "$env" --set "${MMNORM_SET:-onedl}"
export PATH="$PWD/$env/bin:$PATH"
