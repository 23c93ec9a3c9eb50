#!/bin/sh
# Turns the ground of a code interpreter's image into the image: what is ours. Runs as root inside it, from Dockerfile;
# the files lie beside it.
set -eu
cd "$(dirname "$0")"

# Beside what packages put there: R's and Java's, in the full image.
kernels=/usr/local/share/jupyter/kernels
install -d "$kernels" /usr/local/lib/sandyard-python-kernel /root/.ipython/profile_default/startup
cp -r kernels/python3 kernels/javascript kernels/typescript kernels/bash "$kernels"
# Its launcher would be the process that is watched and killed, and the kernel a child that outlives it.
if [ -f "$kernels/java/kernel.json" ]; then
    sed -i 's|"-jar",|"--add-opens", "jdk.jshell/jdk.jshell=ALL-UNNAMED", "-jar",|; /jjava-launcher.jar/d' \
        "$kernels/java/kernel.json"
fi
cp node-kernel/*.js /usr/local/lib/sandyard-node-kernel/
cp python-kernel/* /usr/local/lib/sandyard-python-kernel/
cp profile/ipython_kernel_config.py /root/.ipython/profile_default/
cp profile/startup/*.py /root/.ipython/profile_default/startup/

# What every kernel would write at its start, or the first plot: which fonts there are.
HOME=/root MATPLOTLIBRC=/usr/local/lib/sandyard-python-kernel/matplotlibrc python3 -c 'import matplotlib.font_manager'
chmod -R go-w /usr/local/share/jupyter /usr/local/lib/sandyard-*
