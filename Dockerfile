# Built in one image, run in another that holds the program and nothing to log into.
FROM rust:1.95-bookworm AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked --package weatherlight && mkdir /state

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /source/target/release/weatherlight /source/target/release/esper-weatherlight-service /usr/bin/
COPY --from=build --chown=nonroot:nonroot /state /var/lib/weatherlight
WORKDIR /var/lib/weatherlight
VOLUME /var/lib/weatherlight
EXPOSE 9100
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["/usr/bin/weatherlight", "status", "--check"]
ENTRYPOINT ["/usr/bin/weatherlight"]
CMD ["serve"]
