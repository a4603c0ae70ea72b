#!/bin/bash
# The scientific Python workspace, on top of small.
set -euo pipefail
# shellcheck source=basefs/inside/common.sh
. /run/docklet-build/inside/common.sh

# A Python of its own, so that Debian's stays as Debian's packages expect it; what apt installs is seen by it, too.
install_jupyter() {
  python3 -m venv --system-site-packages /opt/jupyter
  /opt/jupyter/bin/pip install --no-cache-dir --quiet \
    --constraint "$BUILD/profiles/base.constraints.txt" --requirement "$BUILD/profiles/base.requirements.txt"
  # jsonschema uses these two where they are, to check a kind of address that Jupyter does not have; importing them
  # takes 1.3 s of the 2.8 s that JupyterLab would need to start.
  /opt/jupyter/bin/pip uninstall --quiet --yes rfc3987-syntax lark
  /opt/jupyter/bin/python -m ipykernel install --prefix /opt/jupyter --name python3 --display-name 'Python 3'
  mkdir -p /etc/jupyter
  cp "$BUILD/jupyter_server_config.json" /etc/jupyter/jupyter_server_config.json
  # A first start asks nobody about news, and nothing is looked up elsewhere: the image is renewed as a whole.
  mkdir -p /opt/jupyter/share/jupyter/lab/settings
  printf '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}\n' \
    >/opt/jupyter/share/jupyter/lab/settings/overrides.json
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
# Terminals, scripts and `docklet exec` find the same Python as notebooks do: /usr/local/bin is first in every PATH.
wrap_jupyter_programs python python3 pip pip3 ipython jupyter jupyter-lab jupyter-server jupyter-nbconvert
trim_jupyter
compile_bytecode
clean
