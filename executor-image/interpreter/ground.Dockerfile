# The ground of the code interpreter's images, for engines that reach an image registry: all that is downloaded.
# Without one, build.sh makes the same. Built in executor-image/, whose customize.sh it shares with the base image.
ARG FROM=debian:trixie-slim
FROM ${FROM}

ARG LISTS=packages.txt
COPY interpreter /tmp/sandyard/
COPY customize.sh /tmp/sandyard/
RUN DEBIAN_FRONTEND=noninteractive sh /tmp/sandyard/install.sh /tmp/sandyard ${LISTS} \
 && : >/etc/fuse.conf && sh /tmp/sandyard/customize.sh && rm -f /etc/fuse.conf
