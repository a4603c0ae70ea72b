#!/bin/bash
# Starts JupyterLab in a node. Docklet runs it when someone opens Jupyter; it returns at once, and again does nothing.
#
# JupyterLab listens on the node's own loopback and asks for no password: the proxy in front lets in only whom the
# vcluster belongs to. Its settings are in /etc/jupyter/jupyter_server_config.json, its log is in
# `journalctl -u docklet-jupyter`.
set -euo pipefail

readonly UNIT=docklet-jupyter.service

# Also while it starts, or waits to be started again.
is_running() {
  case $(systemctl show --property=ActiveState --value "$UNIT") in
    active | activating | reloading) return 0 ;;
    *) return 1 ;;
  esac
}

start() {
  systemd-run --quiet --collect --unit="$UNIT" \
    --description='JupyterLab of this node' \
    --property=Restart=on-failure --property=RestartSec=1s --property=StartLimitIntervalSec=0 \
    --property=KillMode=mixed --property=TimeoutStopSec=2s \
    --property=WorkingDirectory=/root \
    --setenv=HOME=/root --setenv=SHELL=/bin/bash --setenv=LANG=C.UTF-8 --setenv=TERM=xterm-256color \
    "$1" --no-browser
}

main() {
  local lab
  if ! lab=$(command -v jupyter-lab); then
    echo 'start_jupyter.sh: this image has no JupyterLab; make the vcluster from the image base or full' >&2
    exit 3
  fi
  if is_running; then
    return
  fi
  # Two callers at once: the second finds the unit of the first.
  start "$lab" || is_running
}

main "$@"
