# The server on a CPU. Build and run:
#     docker build -t localwhisper .
#     docker run -p 5000:5000 -v localwhisper-models:/models localwhisper --model base
# or, with these options already set: docker compose --profile cpu up -d

FROM python:3.12-slim AS build
WORKDIR /src
RUN python -m venv /opt/localwhisper
COPY pyproject.toml README.md LICENSE ./
COPY localwhisper ./localwhisper
COPY localwhisper_client ./localwhisper_client
COPY localwhisper_server ./localwhisper_server
RUN /opt/localwhisper/bin/pip install --no-cache-dir '.[server,offline]'

FROM python:3.12-slim
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin localwhisper \
    && install --directory --owner=localwhisper --group=localwhisper /models
COPY --from=build /opt/localwhisper /opt/localwhisper
# All weights go to the volume. Other machines do not reach a container's loopback, so the server listens on all
# addresses. The container engine keeps the log.
ENV PATH=/opt/localwhisper/bin:$PATH \
    HF_HOME=/models/huggingface \
    LOCALWHISPER_SERVER_CACHE_DIR=/models \
    LOCALWHISPER_SERVER_HOST=0.0.0.0 \
    LOCALWHISPER_SERVER_LOG_FILE=none
USER 10001
VOLUME /models
EXPOSE 5000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:5000/health', timeout=4)"]
ENTRYPOINT ["localwhisper-server"]
