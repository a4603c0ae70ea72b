#!/bin/bash
# The scientific Python workspace, on top of small.
set -euo pipefail
# shellcheck source=basefs/inside/common.sh
. /run/docklet-build/inside/common.sh

install_jupyter() {
  python3 -m venv /opt/jupyter
  /opt/jupyter/bin/pip install --no-cache-dir --quiet --requirement "$BUILD/profiles/base.requirements.txt"
  # Notebooks and terminals find the same Python.
  local name
  for name in jupyter jupyter-lab jupyter-server ipython; do
    ln -sf "/opt/jupyter/bin/$name" "/usr/local/bin/$name"
  done
  HOME=/root /opt/jupyter/bin/python -m ipykernel install --prefix /opt/jupyter --name python3 --display-name 'Python 3'
  mkdir -p /etc/jupyter
  cp "$BUILD/jupyter_server_config.json" /etc/jupyter/jupyter_server_config.json
}

# What only developers of the packages read. Source maps alone are a third of JupyterLab.
trim_jupyter() {
  find /opt/jupyter -name '*.map' -delete
  find /opt/jupyter/lib -type d \( -name tests -o -name test \) -path '*/site-packages/*' -prune -exec rm -rf {} +
  find /opt/jupyter -name '*.a' -delete
}

# Made now and not on a node's first start, where it would cost seconds. By content, since a layer keeps no exact times.
compile_bytecode() {
  /opt/jupyter/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/jupyter/lib || true
  MPLCONFIGDIR=/opt/jupyter/share/matplotlib /opt/jupyter/bin/python -c 'import matplotlib.pyplot' >/dev/null
}

install_profile base
install_jupyter
trim_jupyter
compile_bytecode
clean
