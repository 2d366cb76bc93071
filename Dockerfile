# The gateway and Chroma in one image. Written so that the oldest builder can build it too.
#
#   docker build -t chroma-gateway .
#   docker build -t chroma-gateway --build-arg EMBEDDING_MODEL=none .      # without Chroma's default model
#   docker build -t chroma-gateway --build-arg EXTRAS=openai,cohere .      # with extras of pyproject.toml
#   docker build -t chroma-gateway --build-arg OCR_LANGUAGES="eng deu" .   # with tesseract, for scanned pages

# ---------------------------------------------------------------- what is installed
FROM python:3.12-slim AS build

# Debian keeps only one version of a package, so a pin would break the build with its next update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*

# An environment without pip of its own: what serves needs none.
RUN python -m venv --without-pip /opt/gateway
WORKDIR /build
COPY requirements.lock ./
RUN pip --python /opt/gateway/bin/python install --no-cache-dir --disable-pip-version-check --no-input \
        --require-hashes --only-binary :all: --requirement requirements.lock

# ---------------------------------------------------------------- Chroma's default embedding model
FROM build AS model
ARG EMBEDDING_MODEL=default
COPY scripts/image/fetch-model ./
RUN mkdir -p /model/.cache/chroma \
    && if [ "$EMBEDDING_MODEL" = default ]; then \
        HOME=/model timeout 600 /opt/gateway/bin/python fetch-model \
            || echo "WARNING: the embedding model is not in this image, fetching it failed" >&2; \
    fi

# ---------------------------------------------------------------- this project
FROM build AS project
COPY pyproject.toml README.md supervisord.conf ./
COPY gateway ./gateway
# The build backend is of the lock file too, and not needed afterwards.
RUN pip --python /opt/gateway/bin/python install --no-cache-dir --disable-pip-version-check --no-input \
        --no-deps --no-build-isolation .
# Extras are not in the lock file: their versions are the newest that fit it, without hashes.
ARG EXTRAS=
RUN if [ -n "$EXTRAS" ]; then \
        sed -e 's/ \\$//' -e '/^ *--hash=/d' requirements.lock > constraints.txt \
        && pip --python /opt/gateway/bin/python install --no-cache-dir --disable-pip-version-check --no-input \
            --no-build-isolation --prefer-binary --constraint constraints.txt ".[$EXTRAS]"; \
    fi
COPY scripts/image/trim ./
RUN ./trim /opt/gateway

# ---------------------------------------------------------------- the image
FROM python:3.12-slim

ARG VERSION=0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Chroma Gateway" \
      org.opencontainers.image.description="A reverse proxy in front of Chroma: consistent snapshots to S3, restore, safety" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# Group 0, so that platforms that choose a user id of their own (OpenShift) can write too.
# A tmpfs on /run takes over this mode.
RUN useradd --uid 10001 --gid 0 --no-log-init --create-home --home-dir /home/gateway gateway \
    && mkdir -m 0770 /data /store \
    && chown gateway:0 /data /store \
    && chmod 1777 /run

# Languages for OCR, between spaces, as Debian's packages name them: eng, deu, chi-sim.
ARG OCR_LANGUAGES=
# hadolint ignore=DL3008
RUN if [ -n "$OCR_LANGUAGES" ]; then \
        apt-get update \
        && for language in $OCR_LANGUAGES; do \
            apt-get install --yes --no-install-recommends tesseract-ocr "tesseract-ocr-$language" || exit 1; \
        done \
        && rm -rf /var/lib/apt/lists/*; \
    fi

# The base has no compiled standard library, and what cannot write would compile it anew at every start (5 s of 10).
RUN python -m compileall -q -x '/(test|tests|idlelib|lib2to3|ensurepip|turtledemo|tkinter|site-packages)/' \
        /usr/local/lib/python3.12

COPY --from=build /usr/bin/tini-static /usr/bin/tini
COPY --from=model --chown=10001:0 /model/ /home/gateway/
COPY --from=project /opt/gateway /opt/gateway
COPY supervisord.conf /etc/chroma-gateway/supervisord.conf
COPY scripts/image/entrypoint scripts/image/healthcheck /usr/local/bin/

ENV PATH=/opt/gateway/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/home/gateway \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    PORT=8000 \
    GATEWAY_DATA_DIR=/data \
    GATEWAY_STORE=file:///store

USER 10001:0
WORKDIR /home/gateway
EXPOSE 8000
VOLUME ["/data"]
STOPSIGNAL SIGTERM
# A restore may take its time: until it is ready nothing counts as a failure for ten minutes.
HEALTHCHECK --interval=10s --timeout=6s --start-period=600s --retries=3 \
    CMD ["/opt/gateway/bin/python", "-I", "/usr/local/bin/healthcheck"]

# tini hands signals on and reaps what nobody waits for; under it supervisord runs Chroma and the gateway.
ENTRYPOINT ["/usr/bin/tini", "--", "entrypoint"]
CMD ["serve", "--config", "/etc/chroma-gateway/supervisord.conf"]
