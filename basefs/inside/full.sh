#!/bin/bash
# Everything at hand: compilers, languages, MPI, R, TeX, Spark. On top of base.
set -euo pipefail
# shellcheck source=basefs/inside/common.sh
. /run/docklet-build/inside/common.sh

install_spark() {
  /opt/jupyter/bin/pip install --no-cache-dir --quiet --constraint "$BUILD/profiles/base.constraints.txt" \
    --requirement "$BUILD/profiles/full.requirements.txt"
  wrap_jupyter_programs pyspark spark-submit spark-shell spark-sql
}

# Nodes start MPI's processes on each other over ssh, as root, and have one network.
settle_mpi() {
  cat >/etc/openmpi/openmpi-mca-params.conf <<'MCA'
plm_rsh_agent = ssh
btl = self,vader,tcp
MCA
  # Read by every sign-in over ssh, also by those that only run a command.
  printf '%s\n' OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 >>/etc/environment
}

install_profile full
install_spark
settle_mpi
clean
