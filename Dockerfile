# syntax=docker/dockerfile:1
# Built in one image, run in another that holds the program, the C library, the authorities' certificates and nothing to log into.

ARG RUST=rust:1.95.0-bookworm
ARG BASE=gcr.io/distroless/cc-debian12:nonroot

# The sources emptied: a change of code does not change this layer, only one of a dependency does.
FROM ${RUST} AS manifests
WORKDIR /source
COPY . .
RUN find . -type f ! -name Cargo.toml ! -name Cargo.lock ! -name rust-toolchain.toml -delete \
    && for manifest in crates/*/Cargo.toml xtask/Cargo.toml; do \
         mkdir -p "$(dirname "$manifest")/src" && touch "$(dirname "$manifest")/src/lib.rs"; \
       done \
    && mkdir -p crates/weatherlight/src/bin \
    && echo 'fn main() {}' > crates/weatherlight/src/main.rs \
    && cp crates/weatherlight/src/main.rs crates/weatherlight/src/bin/esper-weatherlight-service.rs \
    && find . -exec touch -d @0 {} +

# What others wrote, built once for each Cargo.lock.
FROM ${RUST} AS dependencies
WORKDIR /source
COPY --from=manifests /source .
RUN cargo build --release --locked --package weatherlight

FROM dependencies AS build
COPY . .
# The emptied sources were built later than these were written; cargo goes by time.
RUN find crates -name '*.rs' -exec touch {} + \
    && cargo build --release --locked --package weatherlight \
    && strip --strip-debug target/release/weatherlight target/release/esper-weatherlight-service \
    && mkdir /state

FROM ${BASE}
LABEL org.opencontainers.image.title="Weatherlight" \
      org.opencontainers.image.description="Esper's foundation service: compiles, feeds and supervises networks that grow while they train" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.documentation="docs/deployment.md"
COPY --from=build /source/target/release/weatherlight /source/target/release/esper-weatherlight-service /usr/bin/
COPY --from=build --chown=65532:65532 /state /var/lib/weatherlight
# By number, so that Kubernetes can see that it is not root.
USER 65532:65532
WORKDIR /var/lib/weatherlight
VOLUME /var/lib/weatherlight
EXPOSE 9100
STOPSIGNAL SIGTERM
# Asks /readyz itself: there is no shell and no curl here.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 CMD ["/usr/bin/weatherlight", "status", "--check"]
ENTRYPOINT ["/usr/bin/weatherlight"]
CMD ["serve"]
